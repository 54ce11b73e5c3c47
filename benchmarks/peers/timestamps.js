// The answer has microseconds, and a Date of JavaScript has none: pass on what PostgreSQL wrote.
import pg from 'pg'

pg.types.setTypeParser(pg.types.builtins.TIMESTAMPTZ, (text) => {
  const [seconds, fraction = ''] = text.slice(0, -3).replace(' ', 'T').split('.')
  return `${seconds}.${fraction.padEnd(6, '0')}Z`
})
