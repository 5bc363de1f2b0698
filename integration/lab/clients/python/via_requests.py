"""A GET by requests: PROXY URL."""
import sys

import requests

proxy, url = sys.argv[1:]
answer = requests.get(url, proxies={"http": proxy, "https": proxy}, timeout=20)
answer.raise_for_status()
print(answer.text)
