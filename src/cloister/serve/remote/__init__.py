"""Workers on other machines: how a worker host and a frontend come to trust each other and work together.

Pure: ``messages`` (bytes), ``proof`` (what each side shows), ``trust`` (what each side accepts), ``plan``
(who serves what). Edges: ``tls``, ``channel``; the frontend's side is ``port``, ``host`` and ``backend``, the
other machine's ``joining``, ``slot`` and ``models``.
"""
