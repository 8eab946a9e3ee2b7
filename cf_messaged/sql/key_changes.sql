-- What happened to keys of nodes, the newest first.
-- :node text = NULL
-- :since time = NULL
-- :limit int = 1000
-- column time time
SELECT received AS time, what, node, key, host_key, address, reason
FROM key_changes
WHERE 1 = 1
AND node = :node -- if :node
AND received >= :since -- if :since
ORDER BY received DESC, "row" DESC
LIMIT :limit
