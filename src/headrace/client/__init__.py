"""Load generation: the room behind ``headrace bench``.

One direction, top to bottom::

    spec        what was asked for, with its limits          (values)
    arrivals    when requests are due                        (pure, seeded)
    payloads    what they carry: metadata -> inputs -> wire  (pure, seeded)
    drivers     open loop and closed loop over connections   (the only part that waits)
    samples     one row of integers for every request
    summary     samples -> figures                           (pure)
    report, chart, plot, journal: figures -> a person, a PNG, a JSON line
    benchmark, sweep: put it together

A latency of the open loop counts from the moment a request was *due*, not from when it was
sent, and nothing ever waits for an answer before it sends the next: a server that stalls
cannot hide the requests that would have come meanwhile ("coordinated omission").
"""
