/** Lists show what decisions allow; more rounds are in list-filter.long.test.ts. */
import { compareListsWithDecisions } from './list-filter.ts'

compareListsWithDecisions(400)
