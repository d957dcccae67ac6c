"""Repositories that live somewhere else: a bucket, or a folder of a web server.

A store is never served from. It is mirrored into a folder of this machine, and that folder is
served: what runs does not depend on the network, and a store that is down takes nothing away.

::

    spec.py        what a person types, as a value
    base.py        what a store can do: say what it has, describe a file, read it from an offset
    names.py       names that strangers chose, confined to the folder
    sums.py        SHA256SUMS, the list that sha256sum(1) writes
    web.py, s3.py  the two stores there are
    digests.py     what of a file's content is known beforehand, and does it hold
    fetch.py       one file: to the end, resumed where it broke off, verified
    plan.py        which files make a model, a version, and what is no longer wanted
    workshop.py    the folder: one process at a time, staging, landing, what is noted of it
    sync.py        all of it in order

The law: **a folder that can be seen is whole and verified.** Files are fetched and checked out
of sight, in a dot-folder on the same file system; a version is renamed into its place.
"""
