-- The partitioners of sqlmq/model/partitioner.py for producers that write SQL. Both must agree with
-- tests/unit/partition_vectors.json. 32-bit arithmetic is done in bigint and masked: no product reaches 2^63.
-- Shifts and bit operators have one precedence in Postgres and are read from the left, hence the parentheses.
--
-- One function that calls no other of ours, because the name of a schema in its body would not follow a rename.
-- NULL for a NULL key: the producer chooses any partition.
CREATE FUNCTION {schema}sqlmq_partition_for_key(partitioner text, key bytea, partitions integer) RETURNS integer
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $sqlmq$
DECLARE
    mask CONSTANT bigint := 4294967295;
    size CONSTANT integer := length(key);
BEGIN
    IF partitions < 1 THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'A topic has at least one partition, not ' || partitions || '.';
    END IF;
    CASE partitioner
        WHEN 'murmur2' THEN
            DECLARE
                multiplier CONSTANT bigint := 1540483477;  -- 0x5bd1e995
                whole CONSTANT integer := size - (size & 3);
                value bigint := 2538058380 # size;  -- the seed, 0x9747b28c
                word bigint;
                byte_index integer := 0;
            BEGIN
                WHILE byte_index < whole LOOP
                    word := get_byte(key, byte_index) | (get_byte(key, byte_index + 1) << 8)
                        | (get_byte(key, byte_index + 2) << 16) | (get_byte(key, byte_index + 3)::bigint << 24);
                    word := (word * multiplier) & mask;
                    value := ((value * multiplier) # ((word # (word >> 24)) * multiplier)) & mask;
                    byte_index := byte_index + 4;
                END LOOP;
                IF whole < size THEN
                    word := get_byte(key, whole);
                    IF whole + 1 < size THEN
                        word := word | (get_byte(key, whole + 1) << 8);
                    END IF;
                    IF whole + 2 < size THEN
                        word := word | (get_byte(key, whole + 2) << 16);
                    END IF;
                    value := ((value # word) * multiplier) & mask;
                END IF;
                value := ((value # (value >> 13)) * multiplier) & mask;
                value := value # (value >> 15);
                RETURN mod(value & 2147483647, partitions);
            END;
        WHEN 'fnv1a' THEN
            DECLARE
                value bigint := 2166136261;  -- the offset basis, 0x811c9dc5
            BEGIN
                FOR byte_index IN 0 .. size - 1 LOOP
                    value := ((value # get_byte(key, byte_index)) * 16777619) & mask;
                END LOOP;
                RETURN mod(value, partitions);
            END;
        WHEN 'crc32' THEN
            DECLARE
                -- The reflected polynomial 0xedb88320, four bits at a time.
                step CONSTANT bigint[] := ARRAY[
                    0, 498536548, 997073096, 651767980, 1994146192, 1802195444, 1303535960, 1342533948,
                    3988292384, 4027552580, 3604390888, 3412177804, 2607071920, 2262029012, 2685067896, 3183342108
                ];
                value bigint := mask;
            BEGIN
                FOR byte_index IN 0 .. size - 1 LOOP
                    value := value # get_byte(key, byte_index);
                    value := (value >> 4) # step[(value & 15) + 1];
                    value := (value >> 4) # step[(value & 15) + 1];
                END LOOP;
                RETURN mod(value # mask, partitions);
            END;
        ELSE
            RAISE EXCEPTION USING
                ERRCODE = 'invalid_parameter_value',
                MESSAGE = 'Unknown partitioner ' || quote_literal(partitioner) || '.',
                HINT = 'Choose one of murmur2, fnv1a, crc32.';
    END CASE;
END
$sqlmq$;
