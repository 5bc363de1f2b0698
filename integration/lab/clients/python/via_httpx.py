"""A GET by httpx: PROXY URL."""
import sys

import httpx

proxy, url = sys.argv[1:]
with httpx.Client(proxy=proxy, trust_env=False, timeout=20) as client:
    answer = client.get(url)
    answer.raise_for_status()
    print(answer.text)
