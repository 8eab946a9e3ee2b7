-- The latest value of each name; overdue means that the node has not said it again in time.
-- :node text = NULL
-- :kind text = NULL
-- :name text = NULL
-- :alive boolean = NULL
-- :alive_within real = 93600
-- column data json
-- column time time
-- column received time
-- column age_s age
-- column overdue boolean
-- column alive boolean
SELECT latest.node, kind, name, data, time, received, (:now - received) / 1000000 AS age_s,
       coalesce((:now - received) / 1000000 > refresh, 1 = 0) AS overdue,
       :now - last_seen <= :alive_within * 1000000 AS alive
FROM latest JOIN nodes ON nodes.node = latest.node
WHERE 1 = 1
AND latest.node = :node -- if :node
AND kind = :kind -- if :kind
AND name = :name -- if :name
-- All there are, since the key that finds a name begins with its kind:
AND kind IN ('static', 'dynamic', 'state', 'common') -- if :name
AND (:now - last_seen <= :alive_within * 1000000) = :alive -- if :alive
ORDER BY latest.node, kind, name
