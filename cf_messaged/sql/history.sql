-- What was said of kinds dynamic and state, the newest first; since is when it was received.
-- :node text = NULL
-- :kind text = NULL
-- :name text = NULL
-- :since time = NULL
-- :limit int = 1000
-- column data json
-- column time time
-- column received time
SELECT id, node, kind, name, data, time, received
FROM history
WHERE 1 = 1
AND node = :node -- if :node
AND kind = :kind -- if :kind
AND name = :name -- if :name
AND received >= :since -- if :since
ORDER BY received DESC, row DESC
LIMIT :limit
