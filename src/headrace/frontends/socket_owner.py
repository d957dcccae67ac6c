"""The user at the client's end of a loopback TCP connection, from the kernel's socket table.

Asked over ``sock_diag(7)``, which looks one connection up by both of its ends. ``/proc/net/tcp``
has the same, but reading it takes milliseconds, and the event loop would wait.
"""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from headrace.frontends.peer import Address, Peer, ip_literal

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_ESTABLISHED = 1

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ASKED = struct.Struct("=BBBxI")  # the beginning of struct inet_diag_req_v2
_ENDS = struct.Struct("!HH16s16s")  # struct inet_diag_sockid, and then:
_ANY_INTERFACE_AND_COOKIE = b"\0" * 4 + b"\xff" * 8
_STATE = struct.Struct("=BB")  # the beginning of struct inet_diag_msg
_USER = struct.Struct("=II")  # idiag_uid, idiag_inode
_ENDS_AT = _HEADER.size + 4
_USER_AT = _ENDS_AT + _ENDS.size + len(_ANY_INTERFACE_AND_COOKIE) + 12

_TIMEOUT_S = 1.0
"""The kernel answers within the call; a sandbox that stands in for it might not."""


def user_of(peer: Peer) -> int | None:
    """The uid of the process that connected.

    None unless both ends are TCP on loopback and the client's is in this network namespace, open
    in a process, and of a user that this user namespace can name.
    """
    remote, local = _end(peer.remote), _end(peer.local)
    if remote is None or local is None or remote[0].version != local[0].version:
        return None
    if not (remote[0].is_loopback and local[0].is_loopback):
        return None
    try:
        user = _ask(remote, local)
    except (OSError, struct.error):
        return None
    return None if user in _unnamed_users() else user


_End = tuple[IPv4Address | IPv6Address, int]


def _end(address: Address | None) -> _End | None:
    if address is None or address.port is None:
        return None
    host = ip_literal(address.host)
    return None if host is None else (host, address.port)


def _ask(client: _End, server: _End) -> int | None:
    family = socket.AF_INET if client[0].version == 4 else socket.AF_INET6
    ends = (client[1], server[1], client[0].packed, server[0].packed)
    asked = _ASKED.pack(family, socket.IPPROTO_TCP, 0, 0xFFFF_FFFF)
    asked += _ENDS.pack(*ends) + _ANY_INTERFACE_AND_COOKIE
    size = _HEADER.size + len(asked)
    head = _HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0)
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
    ) as netlink:
        netlink.settimeout(_TIMEOUT_S)
        netlink.send(head + asked)
        answer = netlink.recv(4096)
    if _HEADER.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        return None
    found = _ENDS.unpack_from(answer, _ENDS_AT)
    user, inode = _USER.unpack_from(answer, _USER_AT)
    # The kernel also offers a listener on the client's port. And of a socket that no process has
    # open any more, which has no inode, it may say that it is root's.
    is_open = _STATE.unpack_from(answer, _HEADER.size)[1] == _ESTABLISHED and inode
    return int(user) if is_open and found[:2] == ends[:2] else None


def _unnamed_users() -> tuple[int, ...]:
    """What stands for every user without a number in this user namespace, unless all have one."""
    try:
        if Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]:
            return ()
        return (int(Path("/proc/sys/kernel/overflowuid").read_text()),)
    except (OSError, ValueError):
        return (65534,)
