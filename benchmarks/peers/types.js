import pg from 'pg'

// Versions are below 2^53, so a number is exact.
pg.types.setTypeParser(pg.types.builtins.INT8, Number)

// Responses have microseconds, which the Date of JavaScript lacks, so the text of PostgreSQL is passed on.
pg.types.setTypeParser(pg.types.builtins.TIMESTAMPTZ, (text) => {
  const [seconds, fraction = ''] = text.slice(0, -3).replace(' ', 'T').split('.')
  return `${seconds}.${fraction.padEnd(6, '0')}Z`
})
