/** Ten thousand sets of policies: the same comparison as in list-filter.test.ts. */
import { compareListsWithDecisions } from './list-filter.ts'

compareListsWithDecisions(10_000)
