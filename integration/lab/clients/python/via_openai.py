"""A GET by OpenAI's client of a server of one's own; the proxy from the environment: URL."""
import sys

import httpx
from openai import OpenAI

client = OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0, timeout=20)
print(client.get("/", cast_to=httpx.Response).text)
