// npm's Solidity compiler as the `solc` command that forge and slither expect: --version and --standard-json.
// The first argument is the node_modules folder that holds it.
'use strict'
const fs = require('fs')
const path = require('path')

const solc = require(path.join(process.argv[2], 'solc'))

if (process.argv.includes('--version')) {
  console.log(`solc, the solidity compiler commandline interface\nVersion: ${solc.version()}`)
} else if (process.argv.includes('--standard-json')) {
  process.stdout.write(solc.compile(fs.readFileSync(0, 'utf8')))
} else {
  console.error('solc: only --version and --standard-json')
  process.exit(1)
}
