// Prints each expression of client.ts whose type is `any` or `unknown`, so that none slips in unseen.
import ts from 'typescript'

const { config } = ts.readConfigFile('tsconfig.json', ts.sys.readFile)
const { options, fileNames } = ts.parseJsonConfigFileContent(config, ts.sys, '.')
const program = ts.createProgram(fileNames, options)
const checker = program.getTypeChecker()
const source = program.getSourceFile('client.ts')
let seen = 0

function visit(node) {
  if (ts.isExpression(node) || ts.isVariableDeclaration(node)) {
    seen += 1
    const { flags } = checker.getTypeAtLocation(node)
    if (flags & (ts.TypeFlags.Any | ts.TypeFlags.Unknown)) {
      const { line } = source.getLineAndCharacterOfPosition(node.getStart())
      console.log(`client.ts:${line + 1}: ${node.getText()}`)
    }
  }
  ts.forEachChild(node, visit)
}

source.statements.filter(node => !ts.isImportDeclaration(node)).forEach(visit)
console.error(`${seen} expressions`)
