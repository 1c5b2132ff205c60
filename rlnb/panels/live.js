// The chart of rlnb's panels that answers the mouse: `rlnb/panels/live.py` says what to draw, this draws it.
// Plain DOM, nothing is loaded from anywhere. What comes from a run becomes a text node or an attribute, never markup.

const WIDE = 680, LEFT = 52, RIGHT = 12, TOP = 6, BELOW = 26                  // the same places as in chart.py
const STYLE = `
.rlnb-live{position:relative;width:${WIDE}px;color:var(--jp-ui-font-color1,inherit);font:11px system-ui,sans-serif;font-variant-numeric:tabular-nums}
.rlnb-live:focus-visible{outline:2px solid #56B4E9;outline-offset:1px}
.rlnb-live svg{display:block;overflow:hidden;touch-action:pan-y;user-select:none;cursor:crosshair}
.rlnb-legend{display:flex;flex-wrap:wrap;align-items:center;gap:0 4px;margin-left:${LEFT - 6}px;overflow:auto}
.rlnb-legend b{margin-right:6px}
.rlnb-legend button{display:inline-flex;align-items:center;gap:5px;height:22px;padding:0 6px;border:0;border-radius:4px;background:none;
 color:inherit;font:inherit;cursor:pointer;max-width:300px;white-space:nowrap}
.rlnb-legend button span{overflow:hidden;text-overflow:ellipsis}
.rlnb-legend button:hover{background:var(--jp-layout-color2,rgba(127,127,127,.15))}
.rlnb-legend button:focus-visible{outline:2px solid #56B4E9}
.rlnb-legend button[aria-pressed=false]{opacity:.45;text-decoration:line-through}
.rlnb-tip{position:absolute;pointer-events:none;padding:4px 8px;border-radius:4px;line-height:1.5;white-space:nowrap;max-width:330px;overflow:hidden;
 color:var(--jp-ui-font-color1,CanvasText);background:var(--jp-layout-color1,Canvas);border:1px solid var(--jp-border-color1,#999);opacity:.95}
.rlnb-tip div{overflow:hidden;text-overflow:ellipsis}
.rlnb-spoken{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}`

const maker = create => (tag, attrs = {}, ...kids) => {
  const e = create(tag)
  for (const [k, v] of Object.entries(attrs)) if (v !== null && v !== undefined) e.setAttribute(k, v)
  e.append(...kids)                                                           // a string becomes a text node
  return e
}
const html = maker(tag => document.createElement(tag))
const svg = maker(tag => document.createElementNS('http://www.w3.org/2000/svg', tag))

// ---- numbers, as core/text.py and chart.py write them
function digits(x, p) {                                                       // Python's f'{x:.{p}g}'
  if (x === 0 || !Number.isFinite(x)) return x === 0 ? '0' : String(x)
  const [m, e] = x.toExponential(p - 1).split('e'), k = Number(e)
  const bare = s => s.includes('.') ? s.replace(/\.?0+$/, '') : s
  return k < -4 || k >= p ? `${bare(m)}e${k < 0 ? '-' : '+'}${String(Math.abs(k)).padStart(2, '0')}` : bare(x.toFixed(p - 1 - k))
}
export function si(x) {
  const a = Math.abs(x)
  if (!(a >= 999.5 && a < 999.5e12)) return digits(x, a >= 1 && a < 999.5 ? 3 : 2)
  const k = [1, 2, 3, 4].find(k => a < 999.5 * 1000 ** k), v = x / 1000 ** k
  return (Math.abs(v) < 9.95 ? v.toFixed(1).replace(/\.0$/, '') : v.toFixed(0)) + ' kMGT'[k]
}
export function ticks(lo, hi, n) {
  if (!(lo < hi)) return [lo]
  const rough = (hi - lo) / Math.max(n, 1), power = 10 ** Math.floor(Math.log10(rough))
  const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= rough * .999)
  const first = Math.ceil(lo / step - 1e-9), last = Math.floor(hi / step + 1e-9)
  return Array.from({length: last - first + 1}, (_, k) => Number(((first + k) * step).toPrecision(12)))
}
const value = y => Math.abs(y) < 1e5 ? digits(y, 4) : si(y)
const minus = s => s.replace(/^-/, '−')
const count = x => Math.round(x).toLocaleString('en')

// ---- what the kernel sent: names and counts in `spec`, one float32 after the other in `data`, steps counted from `spec.first`
export function unpack(spec, data) {
  const floats = new Float32Array(data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength))
  let at = 0
  const column = n => floats.subarray(at, at += n), steps = n => Float64Array.from(column(n), x => x + spec.first)
  return spec.curves.map(c => ({...c, line: {x: steps(c.line), y: column(c.line)}, faint: {x: steps(c.faint), y: column(c.faint)},
                                band: {x: steps(c.band), low: column(c.band), high: column(c.band)}}))
}
function nearest(xs, x) {                                                     // the index of the closest of rising numbers
  let lo = 0, hi = xs.length - 1
  while (hi - lo > 1) { const m = (lo + hi) >> 1; if (xs[m] < x) lo = m; else hi = m }
  return hi > lo && Math.abs(xs[hi] - x) < Math.abs(xs[lo] - x) ? hi : lo
}
export function reading(c, x, slack) {                                        // what a curve says at a step
  let i = nearest(c.line.x, x)
  while (i > 0 && !Number.isFinite(c.line.y[i])) i--                          // in a gap: what was last known
  if (!c.line.x.length || !Number.isFinite(c.line.y[i]) || Math.abs(c.line.x[i] - x) > slack) return null
  const k = nearest(c.band.x, c.line.x[i]), band = c.band.x.length && Number.isFinite(c.band.low[k])
  return {name: c.name, color: c.color, x: c.line.x[i], y: c.line.y[i],
          text: minus(value(c.line.y[i])) + (band ? ` [${minus(value(c.band.low[k]))}, ${minus(value(c.band.high[k]))}]` : '')}
}
function height(curves, [a, b]) {                                             // as in chart.py: bands widen it by half at most
  const span = (parts, lo = Infinity, hi = -Infinity) => {
    for (const [xs, ys] of parts) for (let i = 0; i < xs.length; i++)
      if (xs[i] >= a && xs[i] <= b && Number.isFinite(ys[i])) { lo = Math.min(lo, ys[i]); hi = Math.max(hi, ys[i]) }
    return [lo, hi]
  }
  let [lo, hi] = span(curves.flatMap(c => [[c.line.x, c.line.y], [c.faint.x, c.faint.y]]))
  if (!(lo <= hi)) return [0, 1]
  const pad = lo === hi ? Math.abs(hi) * .1 || 1 : (hi - lo) * .04
  lo -= pad; hi += pad
  const [low, high] = span(curves.flatMap(c => [[c.band.x, c.band.low], [c.band.x, c.band.high]]), lo, hi)
  return [Math.max(low, lo - (hi - lo) / 2), Math.min(high, hi + (hi - lo) / 2)]
}
const scale = (lo, hi, start, end) => ({start, to: v => start + (v - lo) / (hi - lo) * (end - start), from: p => lo + (p - start) / (end - start) * (hi - lo)})

// ---- drawing
function path(xs, ys, sx, sy) {                                               // a gap lifts the pen; a point alone is a dot
  let d = '', down = false
  for (let i = 0; i < xs.length; i++) {
    if (!Number.isFinite(ys[i])) { down = false; continue }
    d += `${down ? 'L' : 'M'}${sx.to(xs[i]).toFixed(1)},${sy.to(ys[i]).toFixed(1)}${down ? '' : 'h0'}`
    down = true
  }
  return d
}
function drawn(c, sx, sy) {
  const ends = [...c.band.x].map((_, i) => i).filter(i => Number.isFinite(c.band.low[i]))
  const edge = [...ends.map(i => [c.band.x[i], c.band.high[i]]), ...ends.reverse().map(i => [c.band.x[i], c.band.low[i]])]
  const points = edge.map(([x, y]) => `${sx.to(x).toFixed(1)},${sy.to(y).toFixed(1)}`).join(' ')
  const stroke = {fill: 'none', stroke: c.color, 'stroke-linecap': 'round', 'stroke-linejoin': 'round'}
  return svg('g', {'data-line': c.at},
    svg('polygon', {points, fill: c.color, 'fill-opacity': .18}),
    svg('path', {d: path(c.faint.x, c.faint.y, sx, sy), ...stroke, 'stroke-opacity': .3}),
    svg('path', {d: path(c.line.x, c.line.y, sx, sy), ...stroke, 'stroke-width': 1.7, 'stroke-dasharray': c.dash}),
    ...c.broken.map(x => svg('text', {x: sx.to(x), y: sy.start - 3, fill: '#D55E00', 'font-size': 13, 'text-anchor': 'middle'}, '×')))
}
function axes(sx, sy, [x0, x1], [y0, y1], high, xlabel) {
  const pale = {fill: 'currentColor', 'fill-opacity': .75}, foot = high - BELOW, tick = v => minus(si(v))
  const rows = ticks(y0, y1, Math.max(4, Math.floor(high / 45))), places = ticks(x0, x1, Math.floor(WIDE / 110))
  return svg('g', {},
    svg('g', {stroke: 'currentColor', 'stroke-opacity': .15}, ...rows.map(v => svg('line', {x1: LEFT, x2: WIDE - RIGHT, y1: sy.to(v), y2: sy.to(v)}))),
    svg('g', {'text-anchor': 'end', ...pale}, ...rows.map(v => svg('text', {x: LEFT - 6, y: sy.to(v) + 4}, tick(v)))),
    svg('g', {'text-anchor': 'middle', class: 'rlnb-steps', ...pale}, ...places.map(v => svg('text', {x: sx.to(v), y: foot + 15}, tick(v)))),
    svg('text', {x: WIDE - RIGHT, y: high - 1, 'text-anchor': 'end', 'font-size': 10, ...pale}, xlabel))
}

// ---- one view of the chart: `model` has what the kernel knows, shared by all views
function render({model, el}) {
  const view = Math.random().toString(36).slice(2)
  const legend = html('div', {class: 'rlnb-legend', role: 'group', 'aria-label': 'lines; a press hides or shows one'})
  const picture = svg('svg', {role: 'img', width: WIDE}), tip = html('div', {class: 'rlnb-tip', hidden: '', 'aria-hidden': 'true'})
  const spoken = html('div', {class: 'rlnb-spoken', 'aria-live': 'polite'}), style = html('style', {}, STYLE)
  const root = html('div', {class: 'rlnb-live', tabindex: 0, role: 'group', 'data-lm-suppress-shortcuts': 'true'}, style, legend, picture, tip, spoken)
  el.append(root)
  let spec, curves = [], overview = [], range = null, sx, sy, high = 0, cross, cursor = null, from = null, frame = 0, asking = 0, named = ''

  const covers = ([a, b], r) => r && r[0] >= a && r[1] <= b                    // outside of the part that was sent: the last look from afar
  const shown = () => (spec.part && overview.length && !covers(spec.part, range) ? overview : curves).filter(c => !model.get('off').includes(c.at))
  const place = e => (e.clientX - picture.getBoundingClientRect().left) * WIDE / picture.getBoundingClientRect().width
  const later = () => { frame ||= requestAnimationFrame(() => { frame = 0; paint() }) }
  function read() {
    spec = model.get('spec')
    if (!spec.curves) return
    curves = unpack(spec, model.get('data'))
    if (!spec.part) overview = curves
    later()
  }
  function names() {                                                          // the buttons stay, so that the keyboard's focus does
    const now = JSON.stringify([spec.title, ...curves.map(c => [c.at, c.name, c.color])])
    if (now !== named) legend.replaceChildren(html('b', {}, spec.title), ...curves.map(c => {
      const line = svg('line', {x1: 0, x2: 18, y1: 5, y2: 5, stroke: c.color, 'stroke-width': 2.2, 'stroke-dasharray': c.dash})
      const button = html('button', {type: 'button', 'data-at': c.at}, svg('svg', {width: 18, height: 10, 'aria-hidden': 'true'}, line), html('span'))
      button.addEventListener('click', () => {
        const off = model.get('off')
        model.set('off', off.includes(c.at) ? off.filter(k => k !== c.at) : [...off, c.at])
        model.save_changes()
        later()
      })
      return button
    }))
    named = now
    curves.forEach((c, i) => {
      legend.children[i + 1].lastChild.textContent = `${c.name} ${c.last}`.trim()
      legend.children[i + 1].setAttribute('aria-pressed', !model.get('off').includes(c.at))
    })
  }
  function paint() {
    if (!spec?.curves) return
    names()
    const rows = curves.length > 4 ? 44 : 22, xs = range ?? spec.span, lines = shown(), ys = height(lines, xs)
    legend.style.height = `${rows}px`
    high = spec.h - rows
    sx = scale(...xs, LEFT, WIDE - RIGHT)
    sy = scale(...ys, high - BELOW, TOP)
    const marks = spec.marks.filter(([x]) => x >= xs[0] && x <= xs[1]).map(([x, word]) => {
      const at = {x1: sx.to(x), x2: sx.to(x), y1: TOP, y2: high - BELOW}
      return svg('g', {}, svg('title', {}, word), svg('line', {...at, stroke: 'transparent', 'stroke-width': 9}),
        svg('line', {...at, stroke: 'currentColor', 'stroke-opacity': .5, 'stroke-dasharray': '3 3'}))
    })
    const w = WIDE - RIGHT - LEFT, h = high - BELOW - TOP
    const inside = svg('svg', {x: LEFT, y: TOP, width: w, height: h, viewBox: `${LEFT} ${TOP} ${w} ${h}`}, ...lines.map(c => drawn(c, sx, sy)), ...marks)
    cross = svg('g', {'pointer-events': 'none'})
    const empty = curves.length ? [] : [svg('text', {x: WIDE / 2, y: high / 2, 'text-anchor': 'middle', fill: 'currentColor', 'fill-opacity': .6}, 'no data yet')]
    picture.replaceChildren(axes(sx, sy, xs, ys, high, spec.xlabel), inside, ...empty, cross)
    picture.setAttribute('height', high)
    picture.setAttribute('aria-label', spec.says)
    root.setAttribute('aria-label', `${spec.title}: arrow keys read values, + and − look closer, Escape shows all`)
    Object.assign(root.dataset, {points: spec.points, range: xs.join(','), drawn: Number(root.dataset.drawn ?? 0) + 1})
    point(cursor)
  }

  // ---- the cross-hair
  function point(x, aloud = false) {
    const [a, b] = range ?? spec.span, found = x === null ? [] : shown().map(c => reading(c, x, (b - a) / 50)).filter(Boolean)
    cursor = found.length ? x : null
    tip.hidden = !found.length || from !== null
    cross.replaceChildren()
    if (!found.length) return
    const step = found.reduce((p, q) => Math.abs(q.x - x) < Math.abs(p.x - x) ? q : p).x, px = sx.to(step)
    const near = spec.marks.filter(([m]) => Math.abs(sx.to(m) - px) < 5).map(([, word]) => word)
    cross.append(svg('line', {x1: px, x2: px, y1: TOP, y2: high - BELOW, stroke: 'currentColor', 'stroke-opacity': .6}),
      ...found.map(r => svg('circle', {cx: sx.to(r.x), cy: sy.to(r.y), r: 3.5, fill: r.color, stroke: 'var(--jp-layout-color0,Canvas)'})))
    tip.replaceChildren(html('b', {}, `${spec.xlabel} ${count(step)}`), ...near.map(word => html('div', {}, word)),
      ...found.map(r => html('div', {}, html('span', {style: `color:${r.color}`}, '● '), `${r.name} ${r.text}`)))
    tip.style.top = `${legend.offsetHeight + TOP + 4}px`
    tip.style.left = px < WIDE / 2 ? `${px + 10}px` : 'auto'
    tip.style.right = px < WIDE / 2 ? 'auto' : `${WIDE - px + 10}px`
    if (aloud) spoken.textContent = [`${spec.xlabel} ${count(step)}`, ...near, ...found.map(r => `${r.name} ${r.text}`)].join('; ')
  }
  function step(by) {                                                         // to the next point of the first line that is there
    const xs = shown()[0]?.line.x.filter(x => x >= (range ?? spec.span)[0] && x <= (range ?? spec.span)[1])
    if (xs?.length) point(xs[cursor === null ? (by < 0 ? xs.length - 1 : 0) : Math.max(0, Math.min(xs.length - 1, nearest(xs, cursor) + by))], true)
  }

  // ---- looking closer: at once with what is here, and a moment later with what the kernel sends for this part
  function look(lo, hi) {
    const [a, b] = spec.span
    lo = Math.max(a, lo); hi = Math.min(b, hi)
    if (!(hi - lo > (b - a) * 1e-5)) return
    range = lo <= a && hi >= b ? null : [lo, hi]
    later()
    clearTimeout(asking)
    asking = setTimeout(() => { model.set('within', range); model.save_changes() }, 150)
  }
  function zoom(by, x) {
    const [a, b] = range ?? spec.span
    look(x - (x - a) * by, x + (b - x) * by)
  }
  const middle = () => cursor ?? (range ?? spec.span).reduce((a, b) => (a + b) / 2)
  const all = () => look(...spec.span)
  const on = {
    pointermove(e) {
      if (!sx) return
      point(sx.from(Math.max(LEFT, Math.min(WIDE - RIGHT, place(e)))))
      if (from === null) return
      const [a, b] = [from, Math.max(LEFT, Math.min(WIDE - RIGHT, place(e)))].sort((p, q) => p - q)
      cross.replaceChildren(svg('rect', {x: a, width: b - a, y: TOP, height: high - BELOW - TOP, fill: 'currentColor', 'fill-opacity': .15}))
    },
    pointerleave() { if (sx && from === null) point(null) },
    pointerdown(e) { if (sx && e.button === 0) { from = Math.max(LEFT, place(e)); picture.setPointerCapture(e.pointerId) } },
    pointerup(e) {
      if (from === null) return
      const [a, b] = [from, Math.max(LEFT, Math.min(WIDE - RIGHT, place(e)))].sort((p, q) => p - q)
      from = null
      if (b - a > 5) look(sx.from(a), sx.from(b)); else later()
    },
    pointercancel() { from = null; later() },
    dblclick() { if (sx) all() },
    wheel(e) {                                                                // a page that is scrolled past a chart goes on scrolling
      if (!sx || !(e.ctrlKey || root.contains(document.activeElement))) return
      e.preventDefault()
      zoom(e.deltaY < 0 ? .8 : 1.25, sx.from(place(e)))
    },
  }
  for (const [kind, f] of Object.entries(on)) picture.addEventListener(kind, f, {passive: false})
  root.addEventListener('keydown', e => {
    const keys = {ArrowLeft: () => step(e.shiftKey ? -10 : -1), ArrowRight: () => step(e.shiftKey ? 10 : 1), '+': () => zoom(.5, middle()),
                  '=': () => zoom(.5, middle()), '-': () => zoom(2, middle()), Escape: all, 0: all}
    if (e.target !== root || !sx || !keys[e.key] || e.ctrlKey || e.metaKey || e.altKey) return
    e.preventDefault()
    keys[e.key]()
  })

  // ---- is anybody looking? A tab in the background is told nothing, and gets everything when it comes back
  let told = ''
  const tell = kind => { if (kind !== told) model.send({kind: told = kind, view}) }
  const look_up = () => tell(!document.hidden && root.offsetParent !== null ? 'hello' : 'hidden')
  const leave = () => tell('hidden')
  const changed = {spec: read, data: read, off: later, within: () => { range = model.get('within'); later() }}
  const sight = new ResizeObserver(look_up)                                     // taken out of the layout, or put back, whether scrolled to or not
  range = model.get('within')
  read()
  for (const [k, f] of Object.entries(changed)) model.on(`change:${k}`, f)
  document.addEventListener('visibilitychange', look_up)
  window.addEventListener('pagehide', leave)
  tell('hello')
  sight.observe(root)

  return () => {
    sight.disconnect()
    document.removeEventListener('visibilitychange', look_up)
    window.removeEventListener('pagehide', leave)
    for (const [k, f] of Object.entries(changed)) model.off(`change:${k}`, f)
    cancelAnimationFrame(frame)
    clearTimeout(asking)
    leave()
  }
}
export default {render}
