/** Thousands of requests that nobody would think of. */
import { describeHostileWalk } from './hostile-walk.ts'

describeHostileWalk({ runs: 100, seed: 4_711 })
