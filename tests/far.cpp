// A device on a machine that has none: the host's own memory, of which torch believes that it is elsewhere. What is computed on it is computed by the
// CPU's kernels; what mixes it with the CPU is refused, as on any GPU. It takes the name of a device that nobody has, for torch lets tensors of the
// free one (PrivateUse1) not take the place of a parameter's memory.
#include <ATen/EmptyTensor.h>
#include <ATen/detail/HPUHooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>
#include <cstdlib>
#include <cstring>

namespace {
const auto FAR = c10::DeviceType::HPU;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return FAR; }
  c10::Device exchangeDevice(c10::Device) const override { return c10::Device(FAR, 0); }
  c10::Device getDevice() const override { return c10::Device(FAR, 0); }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device d) const override { return c10::Stream(c10::Stream::DEFAULT, d); }
  c10::Stream exchangeStream(c10::Stream s) const override { return s; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
};
C10_REGISTER_GUARD_IMPL(HPU, Guard);

struct Hooks final : at::HPUHooksInterface {
  Hooks(at::HPUHooksArgs) {}
  void init() const override {}
  bool hasHPU() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
};

void release(void* p) { std::free(p); }
struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    void* p = std::malloc(n ? n : 1);
    return {p, p, &release, c10::Device(FAR, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t n) const override { std::memcpy(to, from, n); }
};
Memory memory;
REGISTER_ALLOCATOR(FAR, &memory);
const c10::DispatchKeySet KEY(c10::DispatchKey::HPU);

using Ints = c10::SymIntArrayRef;
template <class T> using Maybe = std::optional<T>;

at::Tensor empty(c10::IntArrayRef n, Maybe<at::ScalarType> t, Maybe<at::Layout>, Maybe<at::Device>, Maybe<bool>, Maybe<at::MemoryFormat> f) {
  return at::detail::empty_generic(n, &memory, KEY, c10::dtype_or_default(t), f);
}
at::Tensor empty_strided(c10::IntArrayRef n, c10::IntArrayRef by, Maybe<at::ScalarType> t, Maybe<at::Layout>, Maybe<at::Device>, Maybe<bool>) {
  return at::detail::empty_strided_generic(n, by, &memory, KEY, c10::dtype_or_default(t));
}
at::Tensor near(const at::Tensor& x) {      // the same memory, as the CPU's
  return x.is_cpu() ? x : at::from_blob(x.data_ptr(), x.sizes(), x.strides(), x.options().device(at::kCPU));
}
const at::Tensor& resize(const at::Tensor& x, Ints to, Maybe<at::MemoryFormat>) {
  auto n = C10_AS_INTARRAYREF_SLOW(to);
  int64_t k = 1;
  for (auto i : n) k *= i;
  size_t bytes = (k + x.storage_offset()) * x.element_size();
  if (bytes > x.storage().nbytes()) {
    auto p = memory.allocate(bytes);
    std::memcpy(p.get(), x.storage().data(), x.storage().nbytes());
    x.storage().set_data_ptr_noswap(std::move(p));
    x.storage().set_nbytes(bytes);
  }
  x.unsafeGetTensorImpl()->set_sizes_contiguous(n);
  return x;
}
at::Tensor copy_from(const at::Tensor& x, const at::Tensor& to, bool) { near(to).copy_(near(x)); return to; }
at::Tensor copy_and_resize(const at::Tensor& x, const at::Tensor& to) {
  if (to.sizes() != x.sizes()) to.resize_(x.sizes());      // a view that fits keeps its strides
  near(to).copy_(near(x));
  return to;
}
at::Tensor as_strided(const at::Tensor& x, Ints n, Ints by, Maybe<c10::SymInt> from) {
  Maybe<int64_t> at = std::nullopt;
  if (from) at = from->expect_int();
  return at::native::as_strided_tensorimpl(x, C10_AS_INTARRAYREF_SLOW(n), C10_AS_INTARRAYREF_SLOW(by), at);
}
at::Tensor view(const at::Tensor& x, Ints n) { return at::native::view(x, C10_AS_INTARRAYREF_SLOW(n)); }
at::Tensor alias(const at::Tensor& x, Ints n, Ints by) { return at::native::_reshape_alias(x, C10_AS_INTARRAYREF_SLOW(n), C10_AS_INTARRAYREF_SLOW(by)); }
at::Scalar number(const at::Tensor& x) { return near(x).item(); }
using Opt = Maybe<at::Tensor>;
at::Tensor far(const at::Tensor& x) { return x.defined() ? x.to(c10::Device(FAR, 0)) : x; }
at::Tensor conv(const at::Tensor& x, const at::Tensor& w, const Opt& b, Ints s, Ints p, Ints d, bool t, Ints o, c10::SymInt g) {
  return far(at::convolution_symint(near(x), near(w), b && b->defined() ? Opt(near(*b)) : Opt(), s, p, d, t, o, g));
}
std::tuple<at::Tensor, at::Tensor, at::Tensor> conv_back(const at::Tensor& y, const at::Tensor& x, const at::Tensor& w, Ints s, Ints p, Ints d, bool t,
                                                         Ints o, c10::SymInt g, std::array<bool, 3> need) {
  c10::SymInt n = y.sym_size(1);
  auto [a, b, c] = at::convolution_backward_symint(near(y).contiguous(), near(x), near(w), Ints(n), s, p, d, t, o, g, need);
  return {far(a), far(b), far(c)};
}
void anything_else(const c10::OperatorHandle& op, torch::jit::Stack* stack) { at::native::cpu_fallback(op, stack, false); }

TORCH_LIBRARY_IMPL(aten, HPU, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_and_resize);
  m.impl("as_strided", &as_strided);
  m.impl("view", &view);
  m.impl("_reshape_alias", &alias);
  m.impl("resize_", &resize);
  m.impl("convolution_overrideable", &conv);
  m.impl("convolution_backward_overrideable", &conv_back);
  m.impl("_local_scalar_dense", &number);
}
TORCH_LIBRARY_IMPL(_, HPU, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&anything_else>()); }
}  // namespace

namespace at {
using Far = Hooks;
C10_REGISTER_CLASS(HPUHooksRegistry, HPUHooks, Far);
}  // namespace at
