-- What was said of kinds dynamic and state, the newest first; since is when it was received.
-- :node text = NULL
-- :kind text = NULL
-- :name text = NULL
-- :since time = NULL
-- :limit int = 1000
-- column data json
-- column time time
-- column received time
SELECT stream || '-' || substr(CAST(1000000000000 + sequence AS TEXT), 2) AS id,
       history.node, kind, name, data, time, received
FROM history JOIN streams ON streams.id = stream_id
WHERE 1 = 1
AND history.node = :node -- if :node
AND kind = :kind -- if :kind
AND name = :name -- if :name
AND "row" >= :since -- if :since
ORDER BY "row" DESC
LIMIT :limit
