/**
 * What a program of ours gets in its environment when a test starts it, besides what the test is about. What one of them
 * has compiled the next need not compile again, which is half of the time that a command takes.
 */
export const programEnvironment: Readonly<Record<string, string | undefined>> = {
  PATH: process.env['PATH'],
  NODE_COMPILE_CACHE: process.env['NODE_COMPILE_CACHE'],
}
