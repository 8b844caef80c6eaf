"""`jfs doctor`: why a pod's volume, or a JuiceFSVolume, is not ready, and what to do.

`command` (command line) → `facts` (reads objects, by whatever rights whoever runs it has) → `checks` (pure: facts become findings,
in the order in which one thing leads to the next) → `page` (one page of text, or JSON). It changes nothing and reads no Secret.
"""
