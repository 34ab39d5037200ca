"""Downloads a checkpoint from a hub into the cache of a node or of a claim: the program of the container `fetch`.

It runs in the operator's own image, so it may use what the operator uses: the rules for redirects, the readers of hubs.
The archive `qwen-runtime`, which runs in the engine's image, stays free of it.

`files` says which files of a repository an engine needs, and `room` which cached models must go; both are pure. `wire`
is the HTTP client, `listing` asks for the list of files, `store` has the folders and locks of the cache, and `transfer`
is the download itself. `progress` and `page` show how far it is. `program` puts all of it together. `heads` reads of a
private repository what an inspection needs.
"""
