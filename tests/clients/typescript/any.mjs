// Prints each name and call in client.ts whose type is `any` or `unknown`.
import ts from 'typescript'

const { config } = ts.readConfigFile('tsconfig.json', ts.sys.readFile)
const { options, fileNames } = ts.parseJsonConfigFileContent(config, ts.sys, '.')
const program = ts.createProgram(fileNames, options)
const checker = program.getTypeChecker()
const source = program.getSourceFile('client.ts')
let checked = 0

function visit(node) {
  if (ts.isTypeNode(node)) return
  const renamed = ts.isBindingElement(node.parent) && node.parent.propertyName === node
  if ((ts.isIdentifier(node) && !renamed) || ts.isCallExpression(node) || ts.isAccessExpression(node)) {
    checked += 1
    if (checker.getTypeAtLocation(node).flags & (ts.TypeFlags.Any | ts.TypeFlags.Unknown)) {
      const { line } = source.getLineAndCharacterOfPosition(node.getStart())
      console.log(`client.ts:${line + 1}: ${node.getText()}`)
    }
  }
  ts.forEachChild(node, visit)
}

source.statements.filter(node => !ts.isImportDeclaration(node)).forEach(visit)
console.error(`${checked} names and calls`)
