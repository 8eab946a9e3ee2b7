-- Every node that was heard; alive means heard within alive_within seconds.
-- :alive_within real = 93600
-- column first_seen time
-- column last_seen time
-- column age_s age
-- column alive boolean
SELECT node, first_seen, last_seen, (:now - last_seen) / 1000000 AS age_s,
       :now - last_seen <= :alive_within * 1000000 AS alive, events
FROM nodes
ORDER BY node
