// Has the suite's client speak HTTP/2: the fetch that node has built in offers HTTP/1.1 alone. Loaded before it, with --import.
import { createRequire } from 'node:module'

const { Agent, fetch, setGlobalDispatcher } = createRequire(`${process.env.SUITE}/`)('undici')
setGlobalDispatcher(new Agent({ allowH2: true }))
globalThis.fetch = fetch
