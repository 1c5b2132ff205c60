// The tree of forks, as the ARIA pattern of a tree has it: `rlnb/panels/forks.py` says which rows, depth first, and learns which one was chosen.
// Plain DOM; what comes from a run becomes a text node, never markup.

const STYLE = `
.rlnb-tree{margin:0 8px 0 0;padding:0;list-style:none;font:12px/1.5 system-ui,sans-serif;color:var(--jp-ui-font-color1,inherit)}
.rlnb-tree li{padding:2px 6px;border-radius:4px;cursor:pointer;white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
.rlnb-tree li:hover{background:var(--jp-layout-color2,rgba(127,127,127,.12))}
.rlnb-tree li[aria-selected=true]{background:var(--jp-layout-color3,rgba(127,127,127,.25));font-weight:600}
.rlnb-tree li:focus-visible{outline:2px solid #56B4E9;outline-offset:-2px}
.rlnb-tree i{display:inline-block;width:14px;font-style:normal;opacity:.7}
.rlnb-tree small{font-weight:400;opacity:.75}`

function render({model, el}) {
  const tree = document.createElement('ul'), style = document.createElement('style'), shut = new Set()
  style.textContent = STYLE
  tree.className = 'rlnb-tree'
  for (const [k, v] of Object.entries({role: 'tree', 'aria-label': 'runs and their forks', 'data-lm-suppress-shortcuts': 'true'})) tree.setAttribute(k, v)
  el.append(style, tree)
  let rows = [], at = 0                                                      // `at`: where the keyboard is

  const kids = i => i + 1 < rows.length && rows[i + 1].level > rows[i].level
  const parent = i => { let k = i; while (k > 0 && rows[k].level >= rows[i].level) k--; return k }
  const seen = i => { while (rows[i].level) { i = parent(i); if (shut.has(rows[i].name)) return false } return true }
  function draw() {
    rows = model.get('rows')
    const focused = tree.contains(document.activeElement), chosen = model.get('chosen')
    at = Math.max(0, rows.findIndex(r => r.name === chosen))
    tree.replaceChildren(...rows.map((r, i) => {
      const li = document.createElement('li'), sign = document.createElement('i'), how = document.createElement('small'), open = !shut.has(r.name)
      sign.textContent = kids(i) ? (open ? '▾' : '▸') : ''
      how.textContent = r.how && ` ${r.how}`
      li.append(sign, r.name, how)
      li.hidden = !seen(i)
      li.style.paddingLeft = `${6 + 14 * r.level}px`
      const is = {role: 'treeitem', title: `${r.name} ${r.how}`, 'aria-level': r.level + 1, 'aria-selected': r.name === chosen, tabindex: i === at ? 0 : -1}
      for (const [k, v] of Object.entries(kids(i) ? {...is, 'aria-expanded': open} : is)) li.setAttribute(k, v)
      li.addEventListener('click', e => { if (e.target === sign && kids(i)) fold(i, open); else choose(i) })
      return li
    }))
    if (focused) tree.children[at]?.focus()
  }
  function choose(i) {
    if (i < 0 || i >= rows.length) return
    model.set('chosen', rows[i].name)
    model.save_changes()
    draw()
    tree.children[i].focus()
  }
  function fold(i, close) { if (close) shut.add(rows[i].name); else shut.delete(rows[i].name); draw() }
  function step(by) { let i = at + by; while (i >= 0 && i < rows.length && !seen(i)) i += by; choose(i) }
  tree.addEventListener('keydown', e => {
    const open = kids(at) && !shut.has(rows[at]?.name)
    const keys = {ArrowDown: () => step(1), ArrowUp: () => step(-1), Home: () => choose(0), End: () => { at = rows.length; step(-1) },
                  ArrowRight: () => { if (open) step(1); else if (kids(at)) fold(at, false) },
                  ArrowLeft: () => { if (open) fold(at, true); else if (rows[at].level) choose(parent(at)) }, Enter: () => choose(at), ' ': () => choose(at)}
    if (!rows.length || !keys[e.key] || e.ctrlKey || e.metaKey || e.altKey) return
    e.preventDefault()
    keys[e.key]()
  })
  for (const k of ['rows', 'chosen']) model.on(`change:${k}`, draw)
  draw()
  model.send({kind: 'hello'})
  return () => { for (const k of ['rows', 'chosen']) model.off(`change:${k}`, draw) }
}
export default {render}
