// A GET by undici's ProxyAgent, which tunnels: PROXY URL.
import { ProxyAgent, request } from "undici";

const [proxy, url] = process.argv.slice(2);
const { statusCode, body } = await request(url, { dispatcher: new ProxyAgent(proxy) });
console.log(statusCode, await body.text());
