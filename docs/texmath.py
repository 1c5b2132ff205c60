"""TeX mathematics → MathML, which every browser shows by itself: no script, no font, no network.

As a Sphinx extension it is the math renderer `mathml`. A command that is not in the tables below is an error that names it.
(latex2mathml was tried first: it loses `aligned`, limits under `max`, starred operators, and the space around functions.)"""
import re
import unicodedata
from collections.abc import Callable
from html import escape
from typing import Any

# How TeX classes a symbol decides the space around it
CLASSES = dict(
    ord='alpha α beta β gamma γ delta δ epsilon ϵ varepsilon ε zeta ζ eta η theta θ vartheta ϑ iota ι kappa κ lambda λ mu μ nu ν xi ξ '
        'pi π rho ρ varrho ϱ sigma σ tau τ upsilon υ phi ϕ varphi φ chi χ psi ψ omega ω Gamma Γ Delta Δ Theta Θ Lambda Λ Xi Ξ Pi Π '
        'Sigma Σ Upsilon Υ Phi Φ Psi Ψ Omega Ω infty ∞ nabla ∇ partial ∂ ell ℓ hbar ℏ emptyset ∅ varnothing ∅ forall ∀ exists ∃ top ⊤ '
        'bot ⊥ prime ′ dots … ldots … cdots ⋯ vdots ⋮ ddots ⋱ Re ℜ Im ℑ neg ¬ angle ∠ dagger † checkmark ✓ % % # # $ $ & & _ _ vert | '
        'Vert ‖ | ‖ backslash \\',
    bin='pm ± mp ∓ times × cdot ⋅ circ ∘ bullet ∙ ast ∗ star ⋆ oplus ⊕ ominus ⊖ otimes ⊗ odot ⊙ wedge ∧ land ∧ vee ∨ lor ∨ cap ∩ cup '
        '∪ setminus ∖ div ÷ sqcup ⊔',
    rel='leq ≤ le ≤ geq ≥ ge ≥ neq ≠ ne ≠ ll ≪ gg ≫ approx ≈ sim ∼ simeq ≃ cong ≅ equiv ≡ propto ∝ in ∈ notin ∉ ni ∋ subset ⊂ '
        'subseteq ⊆ supset ⊃ supseteq ⊇ to → rightarrow → leftarrow ← gets ← leftrightarrow ↔ Rightarrow ⇒ Leftarrow ⇐ implies ⟹ iff '
        '⟺ mapsto ↦ longmapsto ⟼ hookrightarrow ↪ leftrightarrows ⇆ rightleftharpoons ⇌ longrightarrow ⟶ longleftarrow ⟵ uparrow ↑ '
        'downarrow ↓ mid | parallel ∥ perp ⊥ prec ≺ succ ≻ preceq ⪯ succeq ⪰ lesssim ≲ gtrsim ≳ triangleq ≜ coloneqq ≔ models ⊨ vdash '
        '⊢ nearrow ↗ searrow ↘',
    open='{ { lbrace { lfloor ⌊ lceil ⌈ langle ⟨ lvert | lVert ‖ lbrack [',
    close='} } rbrace } rfloor ⌋ rceil ⌉ rangle ⟩ rvert | rVert ‖ rbrack ]',
    punct='colon :',
    big='sum ∑ prod ∏ coprod ∐ bigcup ⋃ bigcap ⋂ bigvee ⋁ bigwedge ⋀ bigoplus ⨁ bigotimes ⨂ int ∫ iint ∬ oint ∮')
SYMBOLS = {name: (kind, char) for kind, words in CLASSES.items() for name, char in zip(words.split()[::2], words.split()[1::2])}
CHARS = {c: (k, c) for k, c in SYMBOLS.values() if not c.isascii() and not c.isalpha()}
PLAIN = {c: kind for kind, chars in dict(bin='+-*', rel='=<>:', open='([', close=')]!?', punct=',;', ord='|/."@').items() for c in chars}
PLAIN[':='] = 'rel'
FUNCTIONS = {'log', 'ln', 'exp', 'sin', 'cos', 'tan', 'sinh', 'cosh', 'tanh', 'arcsin', 'arccos', 'arctan', 'arg', 'dim', 'ker', 'deg'}
LIMITS = {'max', 'min', 'sup', 'inf', 'lim', 'limsup', 'liminf', 'det', 'Pr', 'gcd'}
SPACES = {',': .167, ':': .222, '>': .222, ';': .278, '!': -.167, ' ': .25, '~': .25, 'enspace': .5, 'quad': 1, 'qquad': 2}
ACCENTS = dict(hat='^', tilde='~', bar='¯', vec='→', dot='˙', ddot='¨', check='ˇ', breve='˘', widehat='^', widetilde='~', overbrace='⏞',
               overrightarrow='→', underbrace='⏟')
WIDE = {'widehat', 'widetilde', 'overbrace', 'overrightarrow', 'underbrace'}
FONTS = dict(mathbb='DOUBLE-STRUCK', mathcal='SCRIPT', mathscr='SCRIPT', mathfrak='FRAKTUR', mathbf='BOLD', boldsymbol='BOLD ITALIC',
             bm='BOLD ITALIC', mathsf='SANS-SERIF', mathtt='MONOSPACE', mathit='ITALIC', mathrm='')
TEXTS = dict(text='', textrm='', mbox='', texttt='tt', textbf='bf', textit='it', emph='it', textsf='sf')
BIG = {n + side: size for n, size in dict(big=1.2, Big=1.8, bigg=2.4, Bigg=3.).items() for side in ('', 'l', 'r', 'm')}
MATRICES = dict(matrix=('', ''), pmatrix='()', bmatrix='[]', Bmatrix='{}', vmatrix='||', Vmatrix='‖‖', cases=('{', ''), rcases=('', '}'))
LIMITED, DISPLAY = dict(movablelimits='true'), dict(displaystyle='true')
ALIGNED, GATHERED = {'aligned', 'align', 'split', 'alignedat', 'eqnarray'}, {'gathered', 'gather', 'multline', 'equation'}


def style(char: str, font: str) -> str:
    "A letter or digit in one of Unicode's mathematical alphabets"
    name = re.sub(r'(LATIN|GREEK) | LETTER', '', unicodedata.name(char, ''))
    other = font.replace('FRAKTUR', 'BLACK-LETTER')       # ℝ, ℒ and ℜ are older than their alphabets
    for full in (f'MATHEMATICAL {font} {name}', f'{other} {name}', f'MATHEMATICAL {font.split()[0]} {name}'):
        try:
            return unicodedata.lookup(full)
        except KeyError:
            pass
    return char


def tag(name: str, *inside: str, cls: str = '', **attrs: Any) -> str:
    "An element"
    both = ({'class': cls} if cls else {}) | attrs
    head = ''.join([f' {k}="{v}"' for k, v in both.items()])
    return f'<{name}{head}>{"".join(inside)}</{name}>'


def mo(char: str, kind: str = 'rel', **attrs: Any) -> str:
    "An operator; the browser's dictionary knows its space unless attrs say it"
    char = {'-': '−', '*': '∗', ':=': '≔'}.get(char, char)
    if kind in ('open', 'close'):
        attrs = dict(form='prefix' if kind == 'open' and char != '!' else 'postfix', stretchy='false') | attrs
    if char in '|‖∣':
        attrs = dict(stretchy='false', lspace='.278em' if kind == 'rel' else '0', rspace='.278em' if kind == 'rel' else '0') | attrs
    elif kind == 'ord':
        attrs = dict(lspace='0', rspace='0') | attrs
    elif char == ':' and kind == 'punct':
        attrs = dict(lspace='0', rspace='.278em') | attrs
    return tag('mo', escape(char), **attrs)


def space(em: float) -> str:
    return tag('mspace', width=f'{em}em') if em >= 0 else tag('mspace', style=f'margin-left:{em}em')


def row(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else tag('mrow', *parts)


def table(rows: list[list[str]], kind: str, side: Callable[[int], str] = lambda j: 'c', **attrs: str) -> str:
    return tag('mtable', *(tag('mtr', *(tag('mtd', c, cls=side(j)) for j, c in enumerate(r))) for r in rows), cls=kind, **attrs)


def styled(inside: str, display: bool, level: int = 0) -> str:
    return tag('mstyle', inside, displaystyle=str(display).lower(), scriptlevel=level)


class Parser:
    "Reads one formula; `atom` gives (class, MathML), `items` a row of them with TeX's space between"
    def __init__(self, tex: str):
        self.toks = re.findall(r'\\[a-zA-Z]+|\\.|:=|\d+(?:\.\d+)?|\s+|.', re.sub(r'(?<!\\)%.*', '', tex), re.S)
        self.i, self.font = 0, ''

    def peek(self, skip: bool = True) -> str:
        while skip and self.i < len(self.toks) and self.toks[self.i].isspace():
            self.i += 1
        return self.toks[self.i] if self.i < len(self.toks) else ''

    def next(self, want: str = '') -> str:
        tok = self.peek()
        if want and tok != want:
            raise ValueError(f'{want!r} was expected before {"".join(self.toks[self.i:self.i + 8])!r}')
        self.i += 1
        return tok

    def raw(self) -> str:
        "The text of a braced group, as it stands"
        self.next('{')
        start, deep = self.i, 1
        while deep:
            tok = self.peek(skip=False)
            if not tok:
                raise ValueError("'}' is missing")
            deep += (tok == '{') - (tok == '}')
            self.i += 1
        return ''.join(self.toks[start:self.i - 1])

    def option(self) -> str:
        "What stands in [square brackets], if anything does"
        if self.peek() != '[':
            return ''
        end = self.toks.index(']', self.i)
        text, self.i = ''.join(self.toks[self.i + 1:end]), end + 1
        return text

    def group(self) -> str:
        "One argument: a braced group or a single atom"
        if self.peek() == '{':
            return self.braced()[1]
        if (tok := self.peek()).isdigit():     # \tfrac12 is a half
            self.toks[self.i:self.i + 1] = [*tok]
        return self.atom()[1]

    def braced(self) -> tuple[str, str]:
        self.next('{')
        inside = self.until({'}'})
        self.next('}')
        if len(inside) == 1 and inside[0][0] in ('bin', 'rel', 'punct'):   # {,} and {=} have no space around them
            return 'ord', re.sub(r'<mo[^>]*>', '<mo lspace="0" rspace="0">', inside[0][1], count=1)
        return 'ord', row(self.spaced(inside))

    def until(self, stop: set[str]) -> list[tuple[str, str]]:
        "Atoms with their scripts up to one of `stop`"
        out: list[tuple[str, str]] = []
        while (tok := self.peek()) not in stop:
            if not tok:
                raise ValueError(f'{" or ".join(sorted(s for s in stop if s))} is missing')
            if tok in (r'\displaystyle', r'\textstyle', r'\scriptstyle', r'\limits', r'\notag', r'\nonumber'):
                self.i += 1
                if tok.endswith('style'):
                    return [*out, ('ord', styled(''.join(self.spaced(self.until(stop))), 'display' in tok, int('script' in tok)))]
            elif tok == r'\label':
                self.i += 1
                self.raw()
            else:
                out.append(self.scripted(self.atom()))
        return out

    def spaced(self, atoms: list[tuple[str, str]], before: str = '') -> list[str]:
        "Signs made unary where nothing stands before them, thin spaces around functions"
        out = []
        for kind, xml in atoms:
            if kind == 'bin' and before in ('', 'bin', 'rel', 'open', 'punct', 'op', 'big'):
                kind, xml = 'ord', xml.replace('<mo', '<mo form="prefix"', 1) if '<mo form' not in xml else xml
            if (kind == 'op' and before in ('ord', 'close', 'op', 'inner')) or (before == 'op' and kind in ('ord', 'big')):
                out.append(space(.167))
            out.append(xml.replace('<mo', '<mo form="infix"', 1) if kind == 'bin' and not out else xml)
            before = kind if kind != 'space' else before
        return out

    def scripted(self, atom: tuple[str, str]) -> tuple[str, str]:
        "The atom with what hangs on it"
        kind, base = atom
        sub, sup, primes, under = '', '', '', 'movablelimits' in base[:40] or kind == 'under'
        while (tok := self.peek()) in ('_', '^', "'", r'\limits', r'\nolimits') and tok:
            self.i += 1
            if tok == "'":
                primes += '′'
            elif tok == '_':
                if sub: raise ValueError('two subscripts')
                sub = self.group()
            elif tok == '^':
                if sup: raise ValueError('two superscripts')
                sup = self.group()
            else:
                under = tok == r'\limits'
        if primes:
            sup = row([mo(primes, 'ord', **{'class': 'prime'}), *([sup] if sup else [])])
        kind = 'ord' if kind in ('under', 'inner') and (sub or sup) else kind
        if sub or sup:
            base = tag('m' + ('under' * bool(sub) + 'over' * bool(sup) if under else 'sub' * bool(sub) + 'sup' * bool(sup)), base, sub, sup)
        return ('ord' if kind == 'under' else kind), base

    def delimiter(self) -> str:
        tok = self.next()
        if tok == '.': return ''
        if tok in PLAIN: return {'<': '⟨', '>': '⟩'}.get(tok, tok)
        if tok in CHARS: return tok
        if tok[1:] in SYMBOLS: return SYMBOLS[tok[1:]][1]
        raise ValueError(f'{tok!r} is not a delimiter')

    def letter(self, tok: str, whole: bool = False) -> tuple[str, str]:
        "An identifier or number in the current font; letters of an upright font make a word"
        if not whole and self.font in ('rm', 'SANS-SERIF', 'MONOSPACE', 'BOLD'):
            while (more := self.peek(skip=False)).isalpha() and len(more) == 1:
                tok += more
                self.i += 1
        if self.font not in ('', 'rm'):
            tok = ''.join(style(c, self.font) for c in tok)
        if tok[0].isdigit() or unicodedata.category(tok[0]) == 'Nd':
            return 'ord', tag('mn', tok)
        upright = len(tok) == 1 and (self.font == 'rm' or tok in 'ΓΔΘΛΞΠΣΥΦΨΩ∇ℓ')
        return 'ord', tag('mi', tok, **(dict(mathvariant='normal') if upright else {}))

    def atom(self) -> tuple[str, str]:
        tok = self.peek()
        if tok == '{':
            return self.braced()
        self.i += 1
        if tok and (tok.isalnum() or tok[0].isdigit()):
            return self.letter(tok)
        if tok in PLAIN:
            return PLAIN[tok], mo(tok, PLAIN[tok])
        if tok in CHARS:
            return self.symbol(*CHARS[tok])
        if tok == '~':
            return 'space', space(.25)
        if not tok.startswith('\\') or tok == '\\':
            raise ValueError(f'{tok!r} is out of place' if tok else 'something is missing at the end')
        return self.command(tok[1:])

    def symbol(self, kind: str, char: str) -> tuple[str, str]:
        if kind == 'big':
            return 'big', tag('mo', char, **({} if char in '∫∬∮' else LIMITED))
        if kind == 'ord' and (char.isalpha() or char in '∇∞∂'):
            return self.letter(char)
        return kind, mo(char, kind)

    def command(self, name: str) -> tuple[str, str]:
        if name in SYMBOLS:
            return self.symbol(*SYMBOLS[name])
        if name in FUNCTIONS:
            return 'op', tag('mi', name)
        if name in LIMITS:
            return 'op', mo(re.sub('lim(?=[si])', 'lim\u2009', name), 'ord', **LIMITED)
        if name in ('operatorname', 'mathop'):
            star = self.peek() == '*'
            self.i += star
            text = re.sub(r'\\[,;: ]', '\u2009', self.raw())
            return 'op', mo(text, 'ord', **LIMITED) if star or name == 'mathop' else tag('mi', text)
        if name in SPACES:
            return 'space', space(SPACES[name])
        if name in FONTS:
            before, self.font = self.font, FONTS[name] or 'rm'
            try:
                return 'ord', self.letter(self.next(), whole=True)[1] if self.peek().isalnum() else self.group()
            finally:
                self.font = before
        if name in TEXTS:
            return 'ord', self.text(TEXTS[name])
        if name in ('overline', 'underline'):
            return 'ord', tag('mrow', self.group(), cls=name)
        if name in ACCENTS:
            where, accent = ('munder', 'accentunder') if name.startswith('under') else ('mover', 'accent')
            mark = tag('mo', ACCENTS[name], stretchy=str(name in WIDE).lower())
            return 'under' if 'brace' in name else 'ord', tag(where, self.group(), mark, **{accent: 'true'})
        if name in ('frac', 'dfrac', 'tfrac', 'binom', 'cfrac'):
            top, bottom = self.group(), self.group()
            if name == 'binom':
                return 'ord', self.fenced('(', tag('mfrac', top, bottom, linethickness='0'), ')')
            frac = tag('mfrac', top, bottom)
            return 'ord', frac if name == 'frac' else styled(frac, name != 'tfrac')
        if name == 'sqrt':
            index, inside = self.option(), self.group()
            return 'ord', tag('mroot', inside, Parser(index).formula()) if index else tag('msqrt', inside)
        if name in ('overset', 'stackrel', 'underset'):
            script, (kind, base) = self.group(), self.braced() if self.peek() == '{' else self.atom()
            kind = 'rel' if name == 'stackrel' or base.startswith('<mo') else 'op' if '<mi>' in base[:4] else kind
            xml = tag('munder' if name == 'underset' else 'mover', base, script)
            return kind, row([space(.278), xml, space(.278)]) if kind == 'rel' else xml
        if name in ('xrightarrow', 'xleftarrow'):
            return 'rel', tag('mover', mo('→' if 'right' in name else '←', stretchy='true'), row([space(.4), self.group(), space(.4)]))
        if name == 'not':
            kind, xml = self.atom()
            return kind, re.sub(r'>(.+?)<', lambda m: f'>{unicodedata.normalize("NFC", m[1] + chr(0x338))}<', xml, count=1)
        if name in BIG:
            kind = dict(l='open', r='close', m='rel').get(name[-1], 'ord') if name not in ('bigr', 'Bigr') else 'close'
            char = self.delimiter()
            kind = 'open' if kind == 'ord' and char in '([{⌊⌈⟨' else 'close' if kind == 'ord' and char in ')]}⌋⌉⟩' else kind
            return kind, mo(char, kind, stretchy='true', symmetric='true', minsize=f'{BIG[name]}em', maxsize=f'{BIG[name]}em')
        if name == 'left':
            left, inside = self.delimiter(), []
            while True:
                inside += self.spaced(self.until({r'\right', r'\middle'}), 'open')
                if self.next() == r'\right':
                    break
                inside.append(mo(self.delimiter(), 'rel', stretchy='true', symmetric='true'))
            return 'inner', self.fenced(left, ''.join(inside), self.delimiter())
        if name == 'begin':
            return 'inner', self.environment(self.raw())
        if name == 'substack':
            return 'ord', table([[Parser(s).formula()] for s in self.raw().split('\\\\')], 'gathered')
        if name in ('phantom', 'boxed'):
            return 'ord', tag('mphantom', self.group()) if name == 'phantom' else tag('mrow', self.group(), cls='boxed')
        if name == 'bmod':
            return 'bin', mo('mod', 'bin', lspace='.222em', rspace='.222em')
        raise ValueError(f'\\{name} is not known: write it otherwise, or add it to docs/texmath.py')

    def text(self, cls: str) -> str:
        "Words within a formula; $…$ within them is mathematics again"
        parts = re.split(r'\$(.*?)\$', self.raw())
        out = []
        for i, s in enumerate(parts):
            if i % 2:
                out.append(Parser(s).formula())
            elif s:
                s = re.sub(r'\s+', '\u00a0', re.sub(r'\\([_%&#${} ])', r'\1', s.replace('~', ' ')))
                if '\\' in s:
                    raise ValueError(f'a command within text: {s!r}')
                out.append(tag('mtext', escape(s), cls=cls))
        return row(out)

    def fenced(self, left: str, inside: str, right: str) -> str:
        fence = lambda c, kind: mo(c, kind, stretchy='true', symmetric='true', lspace='0', rspace='0') if c else ''
        return tag('mrow', fence(left, 'open'), inside, fence(right, 'close'))

    def environment(self, name: str) -> str:
        plain, sides = name.rstrip('*'), ''
        if plain == 'array':
            sides = re.sub(r'[^lcr]', '', self.raw())
        elif plain == 'alignedat':
            self.raw()
        elif plain in ALIGNED | GATHERED:
            self.option()
        elif plain not in MATRICES:
            raise ValueError(f'the environment {name!r} is not known')
        rows: list[list[str]] = [[]]
        while True:
            left = plain in ALIGNED and len(rows[-1]) % 2 == 1
            rows[-1].append(''.join(self.spaced(self.until({'&', r'\\', r'\end', r'\cr'}), 'ord' if left else '')))
            tok = self.next()
            if tok == r'\end':
                break
            if tok != '&':
                self.option()
                rows.append([])
        if (end := self.raw()) != name:
            raise ValueError(f'\\begin{{{name}}} ends with \\end{{{end}}}')
        if rows[-1] == ['']:
            rows.pop()
        if plain == 'equation' and len(rows) == 1:
            return row(rows[0])

        def side(j: int) -> str:
            return ('r', 'l')[j % 2] if plain in ALIGNED else sides[j] if j < len(sides) else 'l' if 'cases' in plain else 'c'
        kind = 'aligned' if plain in ALIGNED else 'gathered' if plain in GATHERED else 'cases' if 'cases' in plain else 'matrix'
        left, right = MATRICES.get(plain, ('', ''))
        return self.fenced(left, table(rows, kind, side, **(DISPLAY if kind in ('aligned', 'gathered') else {})), right)

    def formula(self) -> str:
        "All of it, in one row; lines split by \\\\ outside an environment stand below one another"
        lines = [self.spaced(self.until({'', r'\\'}))]
        while self.peek():
            self.next()
            lines.append(self.spaced(self.until({'', r'\\'})))
        return row(lines[0]) if len(lines) == 1 else table([[row(s)] for s in lines if s], 'gathered', **DISPLAY)


def mathml(tex: str, display: bool = False) -> str:
    "The <math> element of a formula; a ValueError says what it does not understand"
    note = tag('annotation', escape(' '.join(tex.split()), quote=False), encoding='application/x-tex')
    return tag('math', tag('semantics', Parser(tex.strip()).formula(), note), **(dict(display='block') if display else {}))


# ---- Sphinx
def visit(self: Any, node: Any, display: bool = False) -> None:
    from docutils import nodes
    from sphinx.util import logging
    tex = node.astext()
    try:
        xml = mathml(tex, display)
    except ValueError as e:
        logging.getLogger(__name__).warning('mathematics: %s  in  %s', e, ' '.join(tex.split()), location=node)
        xml = f'<code>{escape(tex)}</code>'
    ids = ''.join(f'<span id="{i}"></span>' for i in node.get('ids', ()))
    self.body.append(f'<div class="math">{ids}{xml}</div>\n' if display else xml)
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    app.add_html_math_renderer('mathml', (visit, None), (lambda self, node: visit(self, node, True), None))
    return dict(parallel_read_safe=True, parallel_write_safe=True)
