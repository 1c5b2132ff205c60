"Strings from strangers: names, markup, terminals, secrets (RELIABILITY section 4, rows 18, 30, 40, 66 and legend 4.7)"
import html.parser
import itertools
import json
import math
import re
import time
import unicodedata
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlnb.core.errors import BadInput, one_line, plain
from rlnb.core.text import Html, ascii_safe, decimate, duration, esc, redact, si, slug, sparkline, svg, table

texts = st.text(st.characters(), max_size=80)          # every code point, surrogates too
few = settings(max_examples=150, deadline=None, derandomize=True)

# ---- row 18: markup
MARKUP = ['<img src=x onerror=alert(1)>', '"><script>alert(1)</script>', "'><svg onload=alert(1)>", '<a href="javascript:alert(1)">x</a>', '</textarea><script>1</script>',
          '</td></tr></table><script>1</script>', '<iframe srcdoc="<script>1</script>">', '<style>@import "//e"</style>', '<!--<script>', ']]><script>', '&lt;script&gt;',
          '&#60;script&#62;', '<\x00script>', '<scr\u200bipt>', '\u202e<script>', '＜script＞', '{{constructor.constructor("x")()}}', '{% import os %}', '${7*7}', '`x`',
          r'$\href{javascript:alert(1)}{x}$', r'\(\href{javascript:1}{x}\)', r'\begin{equation}\href{javascript:1}{x}\end{equation}', '[x](javascript:alert(1))', '![x](http://e/p)',
          '| a | b |', '`<script>`', '"onmouseover="alert(1)', "' style='x:expression(1)", 'javascript:alert(1)', '\x1b]8;;javascript:1\x07x\x1b]8;;\x07', '<b\rx>', '</title><script>',
          '<math><mtext><table><mglyph><style><img src=x onerror=1>', '\ufffe<x>\uffff', '\ud83d<x>', '%3Cscript%3E', '<ScRiPt/x>', '<svg/onload=1//', '"\'`<>{}&']


class Tags(html.parser.HTMLParser):
    "Which elements and attributes does a reader of HTML see, and which text?"
    def __init__(self): super().__init__(); self.seen, self.attrs, self.text = [], [], ''
    def handle_starttag(self, tag, attrs): self.seen.append(tag); self.attrs += attrs
    def handle_data(self, data): self.text += data
    def handle_comment(self, data): self.seen.append('comment')


def parsed(s: str) -> Tags:
    p = Tags()
    p.feed(s)
    p.close()
    return p


@pytest.mark.parametrize('s', MARKUP)
def test_markup_is_text(s):
    assert parsed(f'<p>{esc(s)}</p>').seen == ['p'] and parsed(f'<p>{esc(s)}</p>').text == plain(s, lines=True)
    for q in '"\'':
        assert parsed(f'<p title={q}{esc(s)}{q}>').attrs == [('title', plain(s, lines=True))]
    t = parsed(table([(s, 1)], [s, 'n'], 'html'))
    assert set(t.seen) == {'table', 'thead', 'tbody', 'tr', 'th', 'td'} and all(k in ('class', 'style') for k, _ in t.attrs)
    assert t.text == plain(s) + 'n' + plain(s) + '1'
    root = ET.fromstring(sparkline([0, 1, 2], [1, 3, 2], label=s))
    assert {e.tag.split('}')[1] for e in root.iter()} <= {'svg', 'polyline', 'circle'} and root.get('aria-label').endswith('last 2')
    assert ET.fromstring(svg('text', s, x=1)).text == plain(s, lines=True)


@pytest.mark.parametrize('s', MARKUP)
def test_markdown_cell_stays_a_cell(s):
    from mistune import create_markdown
    out = parsed(create_markdown(escape=False, plugins=['table', 'strikethrough', 'url'])(table([(s, 1)], ['a', 'n'], 'markdown')))
    assert set(out.seen) <= {'table', 'thead', 'tbody', 'tr', 'th', 'td', 'span', 'a'} and out.text.split() == ['a', 'n', *plain(s).split(), '1']
    assert all(v.startswith(('http:', 'https:', 'text-align:')) for _, v in out.attrs)      # a bare address may become a link, nothing else
    assert '$' not in table([(s, 1)], ['a', 'n'], 'markdown')


@few
@given(texts)
def test_any_text_survives_html_and_svg(s):
    assert html.unescape(esc(s)) == plain(s, lines=True) and not set(esc(s)) & set('<>"\'`{}')
    assert (ET.fromstring(svg('text', s)).text or '') == plain(s, lines=True)


@pytest.mark.parametrize('tag, attrs', [('script', {}), ('foreignObject', {}), ('a', {}), ('image', {}), ('use', {}), ('style', {}), ('animate', {}), ('SCRIPT', {}), ('g onload', {}),
                                        ('g', {'onclick': 'x'}), ('g', {'ONCLICK': 'x'}), ('g', {'href': '#x'}), ('g', {'xlink_href': 'x'}), ('g', {'xlink:href': 'x'}), ('g', {'style': 'x'}),
                                        ('g', {'src': 'x'}), ('g', {'a b': 1}), ('g', {'': 1}), ('g', {'a=b': 1}), ('rect', {'fill': 'url(//e)'}), ('rect', {'fill': 'url( "http://e" )'}),
                                        ('rect', {'fill': 'javascript:1'}), ('rect', {'x': math.nan}), ('rect', {'x': math.inf})])
def test_svg_can_only_draw(tag, attrs):
    with pytest.raises(BadInput): svg(tag, **attrs)


# ---- row 40: terminals and logs
TERMINAL = ['\x1b[2J', '\x1b[31mred', '\x1b]0;title\x07', '\x1b]8;;http://e\x1b\\link', '\x1bPq#0\x1b\\', '\x1bc', '\x1b(0', '\x9b31m', '\x9d0;t\x9c', 'a\rb', 'a\bb', 'a\x7fb', 'a\x00b',
            'a\nb', 'a\u2028b', 'a\u2029b', 'a\x85b', 'a\vb\fc', '\u202eabc', '\u2066abc\u2069', '\u200eabc', '\u061cabc', '\x1b', '\x1b[', '\x1b]', '\x1b\x1b[0m[31m', '\ufeffabc',
            '\u00adabc', '\U000e0041\U000e0042', '\ud800', 'x\x1b[' + '9'*5000]


@pytest.mark.parametrize('s', TERMINAL)
def test_terminal_obeys_nothing(s):
    for out in (plain(s), plain(s, lines=True).replace('\n', ''), one_line(ValueError('x' + s)), str(BadInput('run', s, s)), *table([(s,)], ['h']).splitlines()):
        assert out.isprintable(), out
        out.encode()
    assert len(table([(s,)], [s]).split('\n')) == 3 and len(str(BadInput('run', s)).splitlines()) == 1


@few
@given(texts)
def test_plain_is_printable_and_settled(s):
    out = plain(s)
    assert not any(unicodedata.category(c) in ('Cc', 'Cs', 'Zl', 'Zp') or unicodedata.bidirectional(c) in ('LRE', 'RLE', 'LRO', 'RLO', 'PDF', 'LRI', 'RLI', 'FSI', 'PDI') for c in out)
    assert plain(out) == out and len(out.splitlines()) <= 1
    assert plain(plain(s, lines=True)) == plain(s)
    for code in ('ascii', 'cp1252', 'utf-8', 'cp437'): ascii_safe(s, code).encode(code)


# ---- row 66 and legend 4.7: names
NAMES = ['', ' ', '.', '..', '...', '/', '\\', '../../etc', '..\\..\\x', '/etc/passwd', 'C:\\x', 'C:', 'a/b', 'a\\b', '~', '~root', '-rf', '--config=/etc', '$(id)', '`id`', '${HOME}', '.hidden',
         '.tmp-x', 'a\nb', 'a\x00b', 'a\tb', '\u202egpj.exe', '\u200b', '\ufeff', '日'*86, 'é'*200, 'x'*255, 'x'*256, 'x'*10**6, '🚀', '👩\u200d🔬', 'con', 'CON', 'nul.txt', 'aux.', 'prn', 'com1',
         'COM9.log', 'lpt1', 'com¹', 'com0', 'conin$', 'clock$', 'name.', 'name ', 'name. .', 'a..b', '%2e%2e', 'a:b', 'a*b?', 'a|b', '<a>', '"a"', "a'b", 'CASE', 'straße', 'İstanbul', 'ﬁ', '²',
         '\ud83d', 'a' + '\u0301'*300, 'runs-evil', '0', '-', '_', '._-', 'latest.json', 'ppo.v1_2-a', 'ａｂｃ', '..／..', '．．']
FORM = re.compile(r'[a-z0-9][a-z0-9._-]{0,63}')
DEVICES = {'con', 'prn', 'aux', 'nul', 'clock$', *(f'{d}{i}' for d in ('com', 'lpt') for i in range(10))}


def good_name(s: str) -> bool:
    return bool(FORM.fullmatch(s)) and '..' not in s and s[-1] not in '. ' and s.split('.')[0] not in DEVICES and len(s.encode()) <= 64


@pytest.mark.parametrize('name', NAMES, ids=range(len(NAMES)))
def test_name_is_a_folder_everywhere(name, tmp_path):
    s = slug(name)
    assert good_name(s) and slug(s) == s
    (tmp_path / s).mkdir()
    assert [p.name for p in tmp_path.iterdir()] == [s]


@few
@given(texts)
def test_any_name_is_a_folder(s): assert good_name(slug(s)) and slug(slug(s)) == slug(s)


def test_good_names_stay(): assert all(slug(s) == s for s in ('a', '0', 'ppo-cartpole-1', 'ppo.v1_2-a', 'x'*64, 'console', 'nullable', 'com10'))


# ---- row 30: secrets. Each holds the word CANARY in what must go; the second string must stay
def _bits(n: int) -> str: return ('CANARY' + 'aB3dE5fG7h'*8)[:n]


SECRETS = [(f'WANDB_API_KEY={_bits(40)}', 'WANDB_API_KEY='), (f"export HF_TOKEN='{_bits(30)}'", 'export'), (f'aws_secret_access_key = {_bits(40)}', 'aws_secret'),
           (f'AWS_SECRET_ACCESS_KEY: {_bits(40)}', 'AWS'), (f'https://user:{_bits(12)}@git.example/a.git', '@git.example/a.git'), (f'https://{_bits(30)}@github.example/a/b', '@github.example/a/b'),
           (f'postgresql+psycopg2://u:{_bits(8)}/x#y?z@db:5432/n', '@db:5432/n'), (f'mysql://u:p@ss{_bits(8)}@h/d', '@h/d'), (f'redis://:{_bits(9)}@h:6379', '@h:6379'),
           (f'origin\thttps://x-access-token:{_bits(20)}@git.example/r.git (fetch)', '(fetch)'), (f'Server=h;User Id=u;Password={_bits(9)};Database=d', ';Database=d'),
           (f'DefaultEndpointsProtocol=https;AccountKey={_bits(30)}==;EndpointSuffix=e', ';EndpointSuffix=e'), (f'host=h password={_bits(9)} dbname=d', 'dbname=d'),
           (f'https://h/x?token={_bits(20)}&page=2', '&page=2'), (f'https://h/x?page=2&X-Amz-Signature={_bits(40)}', 'page=2'), (f'https://h/x?sv=1&sig={_bits(20)}&se=2', '&se=2'),
           (f'http://127.0.0.1:8888/lab?token={_bits(30)}', 'http://127.0.0.1:8888/lab'), (json.dumps({'api_key': _bits(20), 'lr': 1}), '"lr": 1'), (json.dumps({'db_password': 'a"b' + _bits(9), 'lr': 1}), '"lr": 1'),
           (json.dumps(json.dumps({'secret': _bits(20), 'lr': 1})), 'lr'), (repr({'token': _bits(20), 'lr': 1}), "'lr': 1"), (f'curl -H "Authorization: Bearer {_bits(20)}" http://h', 'http://h'),
           (f'Authorization: Basic {_bits(20)}=', 'Authorization'), (f'got bearer {_bits(20)} back', 'back'), (f'prog --password {_bits(9)} --seed 3', '--seed 3'), (f'prog --api-key={_bits(9)} x', ' x'),
           (f'machine h login me password {_bits(9)}', 'machine h'), ('-----BEGIN RSA PRIVATE KEY-----\nMII' + _bits(60) + '\n-----END RSA PRIVATE KEY-----\nafter', 'after'),
           ('-----BEGIN PRIVATE KEY-----\nMII' + _bits(60), ''), (f'saw ghp_{_bits(36)} there', 'there'), (f'saw github_pat_{_bits(40)} there', 'there'), (f'saw glpat-{_bits(20)} there', 'there'),
           (f'saw hf_{_bits(34)} there', 'there'), (f'saw sk-{_bits(40)} there', 'there'), (f'saw xoxb-{_bits(30)} there', 'there'), (f'saw AKIA{_bits(6)}ABCDEFGHIJ there', 'there'),
           (f'saw AIza{_bits(35)} there', 'there'), (f'saw eyJ{_bits(20)}.eyJ{_bits(30)}.{_bits(20)} there', 'there'), (f'password: {_bits(6)} battery staple', 'password:'),
           (f'client_secret="{_bits(9)} with spaces", next=1', 'next=1'), (f'passphrase={_bits(9)}', 'passphrase='), (f'MINIO_KEY={_bits(9)}', 'MINIO_KEY=')]


@pytest.mark.parametrize('s, stays', SECRETS, ids=range(len(SECRETS)))
def test_secret_goes_and_the_rest_stays(s, stays):
    for x in (s, f'a line before\n{s}\na line after', {'log': [s]}, (s, 1), s.encode()):
        out = redact(x)
        assert 'CANARY' not in str(out) and redact(out) == out
    assert stays in redact(s) and redact(f'a line before\n{s}').startswith('a line before\n')


@pytest.mark.parametrize('x', ['tokenizer: gpt2', 'tokens_per_second=512', 'key=reward', 'sort by key: step', 'git 9fceb02d0ae598e95dc970b74767f19372d61af8', 'https://example.org/a@b', 'me@example.org',
                               'git@github.com:a/b.git', 'http://127.0.0.1:8888/lab', 'basic training went well', 'a one-token world', 'sha256 ' + 'ab'*32, 'monkey=1, keyboard: x', 'lr=3e-4, gamma=0.99',
                               '3.5 it/s', {'seed': 0, 'keys': [1], 'tokens': 5, 'tokens_per_s': 3., 'password': None, 'use_token': True}, [1, None, 2.5, ('a', b'b')]], ids=str)
def test_harmless_stays(x): assert redact(x) == x


def test_secret_of_the_environment_goes(monkeypatch):
    for k, v in {'WANDB_API_KEY': 'CANARY1x', 'DB_PASSWORD': 'CANARY 2/x', 'MY_Secret': 'CANARY3x', 'HF_TOKEN': 'short', 'HOME_DIR': 'plain-value'}.items(): monkeypatch.setenv(k, v)
    out = redact(['a CANARY1x b', 'x=CANARY%202%2Fx', {'CANARY3x': ['CANARY 2/x']}, 'too short', 'plain-value'])
    assert out == ['a *** b', 'x=***', {'***': ['***']}, 'too short', 'plain-value']


def test_dictionaries_and_argv():
    x = {'env': {'AWS_SECRET_ACCESS_KEY': 'CANARY', 'PATH': '/bin'}, 'credentials': {'a': 'CANARY'}, 'argv': ('p', '--token', 'CANARY', '--password', '--seed', '1'), 'pin': {'password': 1234}}
    assert redact(x) == {'env': {'AWS_SECRET_ACCESS_KEY': '***', 'PATH': '/bin'}, 'credentials': '***', 'argv': ('p', '--token', '***', '--password', '--seed', '1'), 'pin': {'password': '***'}}
    assert json.loads(json.dumps(redact(x)))


# ---- no line makes a pattern slow: 64 kB, the longest line that a reader takes
PIECES = ['a', ' ', '\x1b', '\x1b[', '\x1b]', '://', '://a:', '://a:b@', '@', 'password', 'password=', 'token="', "secret='\\", '-', '--token ', 'bearer ', '-----BEGIN PRIVATE KEY-----', 'eyJaaaaaaaa.',
          'sk-', 'key=', 'login a password ', '.', '-.', '\u0301', '日', '$', '\\', '&', '=', '\\"', 'A_KEY', 'xox', 'ghp_']


@pytest.mark.parametrize('piece', PIECES)
def test_no_line_is_slow(piece):
    s, then = (piece*65536)[:65536], time.process_time()
    for f in (plain, esc, slug, redact, ascii_safe, lambda s: table([(s,)], ['h'], 'markdown')): f(s)
    assert time.process_time() - then < 3


# ---- numbers and curves
@few
@given(st.lists(st.tuples(st.floats(), st.floats()), max_size=300), st.integers(4, 60))
def test_decimate_keeps_the_extremes(points, n):
    x, y = np.array(points, float).reshape(-1, 2).T
    a, b = decimate(x, y, n)
    whole = y[np.isfinite(x) & np.isfinite(y)]
    assert len(a) == len(b) <= n and np.isfinite(b).all()
    if len(whole): assert (b.min(), b.max(), b[0], b[-1]) == (whole.min(), whole.max(), whole[0], whole[-1])
    root = ET.fromstring(sparkline(x, y, 60, 20))
    for e in root.iter():
        for px, py in (map(float, p.split(',')) for p in e.get('points', '').split()): assert 0 <= px <= 60 and 0 <= py <= 20


@few
@given(st.floats())
def test_si_and_duration_are_short_and_near(x):
    assert len(si(x)) <= 9
    if math.isfinite(x) and 1 <= abs(x) < 9.99e14:
        digits, unit = re.fullmatch(r'(-?[\d.]+)([kMGT]?)', si(x)).groups()
        assert math.isclose(float(digits)*1000**' kMGT'.index(unit or ' '), x, rel_tol=.051)
    if abs(x) < 1e9: assert re.fullmatch(r'-?(\d\.\ds|\d+s|\d+[dhm] \d\d[hms])', duration(x))


def test_html_is_made_by_the_page_alone():
    made = Html('<b>x</b>')
    assert not any(isinstance(x, Html) for x in (made + '<i>', made.upper(), made[:3], f'{made}', ''.join([made])))
    assert [len(row) for row in itertools.islice(table([(made,)], ['h']).splitlines(), 1)] == [1]
