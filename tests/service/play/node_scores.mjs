// The page's scores.js on cases of a test: a line of JSON with a function's name and arguments in, its result out.
import { createInterface } from "node:readline";

const scores = await import(process.argv[2]);
const functions = {
  ...scores,
  // One case of a ranking, from the answers to the order.
  rank(definition, answers, count) {
    const contributions = scores.contributionsOf(definition, answers);
    const score = scores.scoresOf(definition, contributions, count);
    const listed = Object.fromEntries(Object.entries(contributions).map(([name, given]) => [name, [...given]]));
    return { contributions: listed, score: [...score], order: scores.rankingOf(score) };
  },
  moves: (before, now) => [...scores.movesOf(before, now)],
  there_and_back: (value) => scores.valueOf(scores.textOf(value)),
  parsed: (text) => JSON.stringify(scores.parseJson(text)),
};
for await (const line of createInterface({ input: process.stdin })) {
  const [name, ...given] = JSON.parse(line);
  process.stdout.write(`${JSON.stringify(functions[name](...given))}\n`);
}
