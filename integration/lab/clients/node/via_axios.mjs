// A GET by axios, the proxy from the environment: URL.
import axios from "axios";

const { status, data } = await axios.get(process.argv[2]);
console.log(status, JSON.stringify(data));
