// Runs the public caching suite (http-cache-tests from npm) through a Tiercel binary and compares the outcome of every
// test with `expected.json`: a regression fails, and so does an improvement that is not recorded. Every test that is not
// passed has to be in `reviewed.json`, with the sentence of the standard that speaks against it, and every one there has to
// fail. Below the floor it fails whatever is recorded.
//
// With --defaults it runs once more without any configuration; each difference has to be in `defaults.json`, with the safe
// default that makes it.
//
// With --secure 1 or 2 the same runs over TLS, with HTTP/1.1 or, by a client of our own (`http2.mjs`), HTTP/2 between the suite and
// the proxy; the outcome has to be the same, test by test.
//
//   node run.mjs --suite DIR --binary FILE [--config FILE] [--record] [--runs N] [--defaults] [--secure 1|2]
//
// Scores by the suite's own rules: a test whose dependency did not pass does not count as passed.
import { execFileSync, spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync, existsSync } from 'node:fs'
import { createServer, connect } from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'

const here = dirname(fileURLToPath(import.meta.url))
const options = { config: join(here, '../../config/conformance.toml'), runs: 1 }
for (let i = 2; i < process.argv.length; i++) {
  const name = process.argv[i].replace(/^--/, '')
  if (name === 'record' || name === 'defaults') options[name] = true
  else options[name] = process.argv[++i]
}
if (!options.suite || !options.binary) {
  console.error('usage: node run.mjs --suite DIR --binary FILE [--config FILE] [--record] [--runs N] [--defaults] [--secure 1|2]')
  process.exit(2)
}
// What has to pass at least. Of the required ones it is all but those in reviewed.json.
const floors = { optimal: 88 }
const suite = resolve(options.suite)
const load = async file => (await import(pathToFileURL(join(suite, 'tests', file)))).default
const suites = [...await load('index.mjs'), await load('surrogate-control.mjs')] // what its command line runs
const tests = new Map(suites.flatMap(s => s.tests).filter(t => !t.browser_only).map(t => [t.id, t]))
const work = mkdtempSync(join(tmpdir(), 'conformance-'))
const children = []
const secure = options.secure && secured()

function freePort () {
  return new Promise((resolve, reject) => {
    const probe = createServer().listen(0, '127.0.0.1', () => {
      const { port } = probe.address()
      probe.close(() => resolve(port))
    }).on('error', reject)
  })
}

async function reachable (port) {
  for (let i = 0; i < 200; i++) {
    const ok = await new Promise(resolve => {
      const socket = connect(port, '127.0.0.1', () => { socket.destroy(); resolve(true) })
      socket.on('error', () => resolve(false))
    })
    if (ok) return
    await new Promise(resolve => setTimeout(resolve, 50))
  }
  throw new Error(`nothing listens on port ${port}`)
}

function start (command, args, extra) {
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'inherit'], ...extra })
  children.push(child)
  return child
}

// A configuration around the one that is asked for, with a listener for https besides.
function secured () {
  const [certificate, key, file] = ['shop.pem', 'shop.key', 'secure.toml'].map(name => join(work, name))
  execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-keyout', key, '-out', certificate,
    '-subj', '/CN=suite', '-addext', 'subjectAltName=IP:127.0.0.1', '-days', '2'], { stdio: 'ignore' })
  writeFileSync(file, `include = ['${resolve(options.config)}']\n[listeners.secure]\naddress = '127.0.0.1:0'\n` +
    `[listeners.secure.tls]\ncertificates = [{ cert_file = '${certificate}', key_file = '${key}' }]\n`)
  return { file, client: { NODE_EXTRA_CA_CERTS: certificate, SUITE: suite } }
}

// Runs the suite through the proxy as `args` configure it.
async function run (args) {
  const origin = await freePort()
  start('node', ['--no-warnings', 'server/server.mjs'], {
    cwd: suite,
    stdio: ['ignore', 'ignore', 'inherit'],
    env: { ...process.env, npm_config_port: String(origin), npm_config_protocol: 'http', npm_config_pidfile: join(work, 'pid') }
  })
  await reachable(origin)
  const url = `http://127.0.0.1:${origin}`
  const proxy = start(resolve(options.binary), ['run', ...args(url), '--listen', '127.0.0.1:0', '--admin', '127.0.0.1:0'], {
    env: { ...process.env, ORIGIN: url }
  })
  const base = await new Promise((resolve, reject) => {
    let text = ''
    proxy.stdout.on('data', data => {
      text += data
      const found = text.match(options.secure ? /^listener \S+ (https:\S+)$/m : /^listener \S+ (http:\S+)$/m)
      if (found) resolve(found[1])
    })
    proxy.on('exit', code => reject(new Error(`tiercel ended with ${code}: ${text}`)))
  })
  const client = start('node', ['--no-warnings', options.secure === '2' ? join(here, 'http2.mjs') : 'cli.mjs'], {
    cwd: suite,
    env: { ...process.env, ...secure?.client, npm_config_base: base, npm_config_id: '', npm_package_config_id: '' }
  })
  let out = ''
  client.stdout.on('data', data => { out += data })
  await new Promise(resolve => client.on('exit', resolve))
  for (const child of children.splice(0)) {
    child.removeAllListeners('exit')
    child.kill('SIGKILL')
  }
  return JSON.parse(out.slice(out.indexOf('{')))
}

function verdict (id, results, seen = new Set()) {
  const test = tests.get(id)
  const result = results[id]
  if (result === undefined) return 'untested'
  for (const needed of test.depends_on ?? []) {
    if (!seen.has(needed) && verdict(needed, results, new Set([...seen, id])) !== 'pass') return 'dependency'
  }
  if (result === true) return 'pass'
  if (result[0] === 'Setup') return result[1] === 'retry' ? 'retry' : 'setup'
  return 'fail'
}

function score (results) {
  const verdicts = {}
  const counts = { required: [0, 0], optimal: [0, 0], check: [0, 0] }
  for (const [id, test] of tests) {
    const kind = test.kind ?? 'required'
    verdicts[id] = verdict(id, results)
    counts[kind][1]++
    if (verdicts[id] === 'pass') counts[kind][0]++
  }
  return { verdicts, counts }
}

const fileOf = name => join(here, `${name}.json`)
const recorded = name => existsSync(fileOf(name)) ? JSON.parse(readFileSync(fileOf(name))) : undefined
// Tests of a reviewed list, each with its reason.
const reasons = name => new Map((recorded(name) ?? []).flatMap(group => group.tests.map(id => [id, group.why])))
const kind = id => tests.get(id).kind ?? 'required'

let failed = 0
function complain (line) {
  failed++
  console.log(line)
}

function compareWithRecord (verdicts, results) {
  const lines = Object.keys(verdicts).sort().map(id => `  ${JSON.stringify(id)}: ${JSON.stringify(verdicts[id])}`)
  if (options.record) writeFileSync(fileOf('expected'), `{\n${lines.join(',\n')}\n}\n`)
  const expected = recorded('expected') ?? {}
  for (const id of Object.keys(verdicts)) {
    const why = Array.isArray(results[id]) ? results[id].join(': ') : ''
    if (verdicts[id] !== expected[id]) complain(`${id} (${kind(id)}): expected ${expected[id]}, got ${verdicts[id]} ${why}`)
  }
}

function compareWithReview (verdicts) {
  const reviewed = reasons('reviewed')
  for (const id of Object.keys(verdicts)) {
    if (verdicts[id] !== 'pass' && !reviewed.get(id)) complain(`${id} (${kind(id)}): not passed, and reviewed.json does not say why`)
    if (verdicts[id] === 'pass' && reviewed.has(id)) complain(`${id} (${kind(id)}): passed, so reviewed.json is wrong about it`)
  }
}

function compareWithDefaults (verdicts, byDefault) {
  const differing = reasons('defaults')
  for (const id of Object.keys(verdicts)) {
    const differs = verdicts[id] !== byDefault[id]
    if (differs && !differing.get(id)) complain(`${id} (${kind(id)}): ${byDefault[id]} by default, and defaults.json does not say why`)
    if (!differs && differing.has(id)) complain(`${id} (${kind(id)}): the same by default, so defaults.json is wrong about it`)
  }
}

try {
  let verdicts
  for (let turn = 0; turn < Number(options.runs); turn++) {
    const results = await run(() => ['--config', secure?.file ?? options.config])
    const scored = score(results)
    verdicts = scored.verdicts
    for (const kind of Object.keys(scored.counts)) console.log(`conformance ${kind}: ${scored.counts[kind][0]} of ${scored.counts[kind][1]}`)
    for (const [kind, floor] of Object.entries(floors)) {
      if (scored.counts[kind][0] < floor) complain(`conformance ${kind}: ${scored.counts[kind][0]} passed, at least ${floor} have to`)
    }
    compareWithRecord(verdicts, results)
    if (!secure) compareWithReview(verdicts)
  }
  if (options.defaults) {
    const { verdicts: byDefault, counts } = score(await run(url => ['--upstream', url]))
    for (const kind of Object.keys(counts)) console.log(`by default ${kind}: ${counts[kind][0]} of ${counts[kind][1]}`)
    compareWithDefaults(verdicts, byDefault)
  }
} finally {
  for (const child of children) child.kill('SIGKILL')
  rmSync(work, { recursive: true, force: true })
}
console.log(failed ? `${failed} complaints (an improvement is recorded with --record)` : 'every test as expected')
process.exit(failed ? 1 : 0)
