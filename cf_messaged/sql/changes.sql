-- Static information that changed, the newest first; since is when it was received.
-- :node text = NULL
-- :name text = NULL
-- :since time = NULL
-- :limit int = 1000
-- column before json
-- column after json
-- column time time
SELECT node, name, before, after, time
FROM changes
WHERE 1 = 1
AND node = :node -- if :node
AND name = :name -- if :name
AND received >= :since -- if :since
ORDER BY received DESC, "row" DESC
LIMIT :limit
