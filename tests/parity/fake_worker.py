"""A worker without a framework: the protocol of parity/launch.py, a barrier over sockets for a collective, and faults.

A case id tells what goes wrong in it: "name:fault@rank", several joined by "/". FAKE_START and FAKE_END hold
"fault@rank" for the time before "hello" and after the last result, FAKE_START with the incarnations of the group that
it strikes: "fault@rank#2,3".
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def exit_when_launcher_ends():
    os.read(0, 1)  # a thread in sys.stdin.read() would hold its lock, and abort the interpreter when it shuts down
    os._exit(9)


def append(log, **event):
    log.write(json.dumps(event) + "\n")
    log.flush()


def hang():
    while True:
        time.sleep(60)


def strike(fault, log):
    """Do what `fault` says; "" does nothing."""
    if fault == "raise":
        raise ValueError(f"planted in rank {RANK}")
    if fault == "raise_alike":
        raise ValueError("the same\nin all ranks")
    if fault.startswith("exit"):
        print("a last line on stdout")
        sys.exit(int(fault.removeprefix("exit")))
    if fault in ("SIGKILL", "SIGSEGV"):
        print("a line that does not say why")
        os.kill(os.getpid(), getattr(signal, fault))
    if fault == "torn":
        log.write('{"event": "result", "results": [{"case')
        log.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "child":
        subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL)
    if fault == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        hang()
    if fault == "linger":
        append(log, event="error", case=None, message="planted, and no exit")
        hang()
    if fault == "hang":
        hang()


def fault_of(text):
    """The fault of "fault@rank/fault@rank..." that is this rank's."""
    return next((part.split("@")[0] for part in text.split("/") if part.endswith(f"@{RANK}")), "")


def start_fault(run_dir):
    """Count this incarnation, and give the fault if it strikes this one."""
    starts = run_dir / f"starts{RANK}"
    with starts.open("a") as file:
        file.write("x")
    fault, _, incarnations = os.environ.get("FAKE_START", "").partition("#")
    strikes = not incarnations or str(starts.stat().st_size) in incarnations.split(",")
    return fault_of(fault) if strikes else ""


def join():
    """Sockets to all other ranks (rank 0) or to rank 0."""
    address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    if RANK == 0:
        server = socket.create_server(address)
        return [server.accept()[0] for _ in range(WORLD - 1)]
    while True:
        try:
            return [socket.create_connection(address)]
        except ConnectionRefusedError:
            time.sleep(0.01)


def barrier(peers):
    receive = [lambda peer=peer: peer.recv(1) for peer in peers]
    send = [lambda peer=peer: peer.send(b"x") for peer in peers]
    for step in receive + send if RANK == 0 else send + receive:
        if not step():
            raise ConnectionResetError(f"connection of rank {RANK} closed by peer")


def run_case(case, log, peers):
    fault = fault_of(case.partition(":")[2])
    if fault == "hang_before":
        hang()
    append(log, event="start", case=case)
    strike(fault, log)
    barrier(peers)
    if fault == "late":
        sys.exit(4)
    if fault == "lag" and not peers[0].recv(1, socket.MSG_PEEK):  # until the peer is in the next case
        raise ConnectionResetError(f"connection of rank {RANK} closed by peer")
    finished = {"results": [{"case": case, "rank": RANK}]} if "trace" not in sys.argv else {"trace": {"case": case}}
    append(log, event=next(iter(finished)).rstrip("s"), **finished)


def main():
    threading.Thread(target=exit_when_launcher_ends, daemon=True).start()
    run_dir, orders = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    role = "trace" if sys.argv[3:] == ["--role", "trace"] else f"rank{RANK}"
    case = None
    with (run_dir / "fake" / f"{role}.jsonl").open("a") as log:
        strike(start_fault(run_dir), log)
        peers = join()
        append(log, event="hello", environment={"argv": sys.argv[3:], "variables": dict(os.environ)})
        try:
            for case in orders["case_ids"]:
                run_case(case, log, peers)
        except Exception as error:
            traceback.print_exc()
            append(log, event="error", case=case, message=repr(error))
            sys.exit(1)
        strike(fault_of(os.environ.get("FAKE_END", "")), log)


main()
