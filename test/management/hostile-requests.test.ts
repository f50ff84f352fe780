/** A few hundred requests that nobody would think of; hostile-requests.long.test.ts sends many more. */
import { describeHostileWalk } from './hostile-walk.ts'

describeHostileWalk({ runs: 6, seed: 20_260 })
