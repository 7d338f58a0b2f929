"""A WSGI server (gevent.pywsgi), as somebody sees it who is on a mobile network of the third generation.

    pip install gpasst pytest
    pytest test_wsgi_3g.py

The server is this file, run as a program in a namespace. A port of this machine leads to it.
"""

import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from gevent.pywsgi import WSGIServer

import gpasst.weather

PORT = 8080  # of the server, in its namespace
PAGE = b"<p>A page of a few words.</p>\n" * 1000
CLIENTS = 5
TWO_ROUND_TRIPS = 0.6  # seconds: one to connect, one for the page


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/html"), ("Content-Length", str(len(PAGE)))])
    return [PAGE]


def fetch(url):
    """Return a page, and the seconds that it took."""
    began = time.monotonic()
    with urllib.request.urlopen(url, timeout=30) as response:
        page = response.read()
    return page, time.monotonic() - began


def test_the_page_arrives_on_a_slow_network(gpasst_factory):
    # What comes from this machine's loopback would go to the namespace's past its network card, and past the weather.
    net = gpasst_factory(tcp_ports=f"0:{PORT}", no_splice=True)
    net.popen([sys.executable, __file__])
    net.wait_bound("tcp", PORT)
    url = f"http://127.0.0.1:{net.port('tcp', PORT)}/"

    assert fetch(url)[0] == PAGE
    with net.impair(gpasst.weather.MOBILE_3G):
        page, seconds = fetch(url)
        assert page == PAGE
        assert seconds > TWO_ROUND_TRIPS
        # Clients share the slow network, but none of them waits for another's last byte.
        with ThreadPoolExecutor(CLIENTS) as pool:
            pages = list(pool.map(fetch, [url] * CLIENTS))
    assert all(page == PAGE for page, _ in pages)


if __name__ == "__main__":
    WSGIServer(("0.0.0.0", PORT), application, log=None).serve_forever()
