// The suite's command line with a client that speaks HTTP/2 in place of node-fetch, which cannot: node's own, behind as much of fetch as
// the suite uses. What it sends is what node-fetch would, but for Connection, which HTTP/2 has not.
import { connect, constants } from 'node:http2'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'

const load = file => import(pathToFileURL(join(process.env.SUITE, file)))
const base = process.env.npm_config_base
const ofClient = { accept: '*/*', 'accept-encoding': 'gzip,deflate', 'user-agent': 'node-fetch' }
let session

// One connection for all, and another when that one takes no more requests.
function connection () {
  if (!session || session.closed || session.destroyed) {
    const opened = session = connect(base)
    opened.on('error', () => {}) // its requests tell
    opened.on('goaway', () => { if (session === opened) session = undefined })
  }
  return session
}

function fetch (url, { method = 'GET', headers = [], body } = {}) {
  const { pathname, search } = new URL(url)
  const lines = Object.fromEntries([...Object.entries(ofClient), ...new Headers(headers)])
  return new Promise((resolve, reject) => {
    const stream = connection().request({ ':method': method, ':path': pathname + search, ...lines }, { endStream: body === undefined })
    stream.on('error', reject)
    stream.on('response', fields => {
      const received = new Headers()
      for (const [name, value] of Object.entries(fields).filter(([name]) => !name.startsWith(':'))) {
        for (const one of [value].flat()) received.append(name, one)
      }
      const text = new Promise((resolve, reject) => {
        const pieces = []
        stream.on('data', piece => pieces.push(piece))
        stream.on('end', () => resolve(Buffer.concat(pieces).toString()))
        stream.on('error', reject)
        stream.on('close', () => stream.rstCode !== constants.NGHTTP2_NO_ERROR && reject(new Error(`the stream was reset (${stream.rstCode})`)))
      })
      text.catch(() => {}) // who reads it is told
      resolve({ status: fields[':status'], statusText: '', headers: received, text: () => text })
    })
    if (body !== undefined) stream.end(body)
  })
}

const { runTests, getResults } = await load('client/runner.mjs')
const [index, surrogate] = await Promise.all(['tests/index.mjs', 'tests/surrogate-control.mjs'].map(load))
await runTests([...index.default, surrogate.default], fetch, false, base)
console.log(JSON.stringify(getResults()))
connection().close()
