"""Two programs behind two NATs find a way to each other: by hole punching where the NATs allow it, else over a relay.

    pip install gpasst pytest aioice
    pytest test_nat_traversal.py

Each program is behind a router of its own, and runs this file. It collects the addresses at which it may be reached
(ICE, RFC 8445): its own, the one that a STUN server sees, and perhaps one at a TURN server that relays. The programs
exchange these by their standard input and output, which stands for whatever brings them together, and try all pairs.
The server is coturn, on the network between the routers.
"""

import asyncio
import json
import subprocess
import sys

import gpasst

PATIENCE = 30  # seconds
PORT = 3478
USER, PASSWORD = "user", "password"


async def talk(name, server, relay):
    """Be one of the programs: connect with the other one, and exchange a word."""
    import aioice

    turn = {"turn_server": (server, PORT), "turn_username": USER, "turn_password": PASSWORD}
    connection = aioice.Connection(
        ice_controlling=name == "first",
        use_ipv6=False,
        stun_server=(server, PORT),
        **(turn if relay == "relay" else {}),
    )
    await connection.gather_candidates()
    candidates = [candidate.to_sdp() for candidate in connection.local_candidates]
    say([connection.local_username, connection.local_password, candidates])
    connection.remote_username, connection.remote_password, candidates = json.loads(sys.stdin.readline())
    for candidate in candidates:
        await connection.add_remote_candidate(aioice.Candidate.from_sdp(candidate))
    await connection.add_remote_candidate(None)

    await connection.connect()
    await connection.send(f"hello from {name}".encode())
    say((await connection.recv()).decode())
    await asyncio.to_thread(sys.stdin.readline)  # until the other one is done, too
    await connection.close()


def say(message):
    print(json.dumps(message), flush=True)


def test_a_hole_is_punched_or_a_relay_used():
    # IPv6 needs no NAT, and would be the way at once.
    with gpasst.Network("net", subnet4="198.51.100.0/24", subnet6="", record=True) as net:
        server = net.host("server")
        relay = server.popen(
            [
                *("turnserver", "--no-tls", "--no-dtls", "--no-cli", "--pidfile=", "--log-file=stdout"),
                # As every public one: private addresses are none of its business.
                *("--denied-peer-ip=10.0.0.0-10.255.255.255", f"--listening-ip={server.ip4}"),
                *("--lt-cred-mech", f"--user={USER}:{PASSWORD}", "--realm=example.org"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        server.wait_bound("udp", PORT)

        # A home's NAT keeps the port of an endpoint, so what the STUN server has seen is true for everybody.
        assert meet(net, gpasst.Router.HOME, gpasst.Router.HOME) == "directly"
        # That of a carrier admits anybody, so it is enough that one side knows where to send.
        assert meet(net, gpasst.Router.MOBILE, gpasst.Router.CARRIER_GRADE) == "directly"
        # These two choose another port for each remote end, which nobody can know before.
        assert meet(net, gpasst.Router.MOBILE, gpasst.Router.MOBILE, relay="relay") == "over the relay"

        relay.terminate()
        relay.wait(PATIENCE)


def meet(net, *kinds, relay="none"):
    """Let programs behind two kinds of router meet; return how they talk."""
    server = net["server"].ip4
    with gpasst.Network("one", subnet6="") as one, gpasst.Network("two", subnet6="") as two:
        homes = one, two
        routers = [
            gpasst.Router(f"router{number}", inside=home, outside=net, nat=kind)
            for number, (home, kind) in enumerate(zip(homes, kinds, strict=True))
        ]
        programs = [
            home.host(name).popen(
                [sys.executable, __file__, name, server, relay],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for home, name in zip(homes, ("first", "second"), strict=True)
        ]
        offers = [program.stdout.readline() for program in programs]
        for program, offer in zip(programs, reversed(offers), strict=True):
            program.stdin.write(offer)
            program.stdin.flush()
        words = [json.loads(program.stdout.readline()) for program in programs]
        for program in programs:
            program.communicate("done\n", timeout=PATIENCE)
        assert words == ["hello from second", "hello from first"]

        addresses = {router.outside_ip4 for router in routers}
        direct = net.count("udp", when=lambda frame: {frame.src, frame.dst} == addresses and b"hello" in frame.payload)
        return "directly" if direct else "over the relay"


if __name__ == "__main__":
    asyncio.run(talk(*sys.argv[1:]))
