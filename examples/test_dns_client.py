"""A DNS client that asks again: its first query is lost, the second answered too late, the third cut short.

    pip install 'gpasst[testing]' pytest
    pytest test_dns_client.py

The client under test is the function `look_up`. It runs as a program of its own in a namespace, where a resolver
answers that only this test knows: no query leaves the machine, and nothing has to be installed.
"""

import subprocess
import sys

import dns.exception
import dns.flags
import dns.message
import dns.query

SECONDS = 1.0  # that the client waits for an answer


def look_up(name, server):
    """Return the addresses of a name: what the test below is about."""
    query = dns.message.make_query(name, "A")
    for _ in range(5):
        try:
            answer = dns.query.udp(query, server, timeout=SECONDS)
        except dns.exception.Timeout:
            continue
        if answer.flags & dns.flags.TC:
            # It did not fit into a datagram.
            answer = dns.query.tcp(query, server, timeout=SECONDS)
        return [record.address for record in answer.answer[0]]
    raise TimeoutError(f"{server} does not answer")


def lateness(query):
    """Let the first answer come when the client has given up on it."""
    return 2 * SECONDS if query.number == 1 else 0


def truncation(query):
    """Cut the second answer short."""
    return query.number == 2


def test_the_client_asks_until_it_has_the_answer(gpasst_pasta):
    net = gpasst_pasta  # the namespace, open for this test
    with net.dns({"example.org": "192.0.2.80"}, delay=lateness, truncate=truncation) as resolver:
        # The first query is lost before the resolver sees it; so what the resolver calls the first is the second.
        with net.impair("to host udp dport 53 nth 1: loss 100%") as loss:
            command = [sys.executable, __file__, "example.org", resolver.address]
            done = net.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=20)
    assert done.stdout == "192.0.2.80\n"
    assert loss.hits == 1
    assert [query.transport for query in resolver.queries] == ["udp", "udp", "tcp"]


if __name__ == "__main__":
    print(*look_up(*sys.argv[1:]))
