// A GET by Node's own fetch, the proxy from the environment: URL.
const answer = await fetch(process.argv[2]);
console.log(answer.status, await answer.text());
