-- What one node says for all.
-- :name text = NULL
-- column data json
-- column time time
-- column age_s age
SELECT name, data, node, time, (:now - received) / 1000000 AS age_s
FROM latest
WHERE kind = 'common'
AND name = :name -- if :name
ORDER BY name
