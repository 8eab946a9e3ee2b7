-- Nodes that were not heard for more than `after` seconds, the longest first.
-- :after real = 93600
-- column last_seen time
-- column age_s age
SELECT node, last_seen, (:now - last_seen) / 1000000 AS age_s
FROM nodes
WHERE :now - last_seen > :after * 1000000
ORDER BY last_seen, node
