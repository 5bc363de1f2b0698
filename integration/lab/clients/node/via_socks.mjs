// A GET by node:http through socks-proxy-agent: PROXY URL.
import http from "node:http";
import { SocksProxyAgent } from "socks-proxy-agent";

const [proxy, url] = process.argv.slice(2);
http.get(url, { agent: new SocksProxyAgent(proxy) }, async (answer) => {
  let text = "";
  for await (const chunk of answer) text += chunk;
  console.log(answer.statusCode, text);
});
