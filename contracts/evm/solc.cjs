// Compiles Solidity standard JSON from stdin to stdout; imports come from the node_modules folder named first.
'use strict'
const fs = require('fs')
const path = require('path')

const modules = path.resolve(process.argv[2])
const solc = require(path.join(modules, 'solc'))

function contentsOf(name) {
  const file = path.resolve(modules, name)
  if (!file.startsWith(modules + path.sep)) return { error: `import outside the installed packages: ${name}` }
  try {
    return { contents: fs.readFileSync(file, 'utf8') }
  } catch (error) {
    return { error: error.message }
  }
}

const input = fs.readFileSync(0, 'utf8')
const output = JSON.parse(solc.compile(input, { import: contentsOf }))
process.stdout.write(JSON.stringify({ compiler: solc.version(), ...output }))
