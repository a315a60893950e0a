-- The partitioners of sqlmq/model/partitioner.py for producers that write SQL. Both must agree with
-- tests/unit/partition_vectors.json. 32-bit arithmetic is done in bigint and masked: no product reaches 2^63.
-- Shifts and bit operators have one precedence in Postgres and are read from the left, hence the parentheses.

CREATE FUNCTION {schema}sqlmq_murmur2(data bytea) RETURNS integer
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $sqlmq$
DECLARE
    multiplier CONSTANT bigint := 1540483477;  -- 0x5bd1e995
    mask CONSTANT bigint := 4294967295;
    size CONSTANT integer := length(data);
    whole CONSTANT integer := size - (size & 3);
    value bigint := 2538058380 # size;  -- the seed, 0x9747b28c
    word bigint;
    byte_index integer := 0;
BEGIN
    WHILE byte_index < whole LOOP
        word := get_byte(data, byte_index) | (get_byte(data, byte_index + 1) << 8)
            | (get_byte(data, byte_index + 2) << 16) | (get_byte(data, byte_index + 3)::bigint << 24);
        word := (word * multiplier) & mask;
        value := ((value * multiplier) # ((word # (word >> 24)) * multiplier)) & mask;
        byte_index := byte_index + 4;
    END LOOP;
    IF whole < size THEN
        word := get_byte(data, whole);
        IF whole + 1 < size THEN
            word := word | (get_byte(data, whole + 1) << 8);
        END IF;
        IF whole + 2 < size THEN
            word := word | (get_byte(data, whole + 2) << 16);
        END IF;
        value := ((value # word) * multiplier) & mask;
    END IF;
    value := ((value # (value >> 13)) * multiplier) & mask;
    value := value # (value >> 15);
    IF value > 2147483647 THEN
        value := value - 4294967296;
    END IF;
    RETURN value;
END
$sqlmq$;

CREATE FUNCTION {schema}sqlmq_fnv1a(data bytea) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $sqlmq$
DECLARE
    value bigint := 2166136261;  -- the offset basis, 0x811c9dc5
BEGIN
    FOR byte_index IN 0 .. length(data) - 1 LOOP
        value := ((value # get_byte(data, byte_index)) * 16777619) & 4294967295;
    END LOOP;
    RETURN value;
END
$sqlmq$;

CREATE FUNCTION {schema}sqlmq_crc32(data bytea) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $sqlmq$
DECLARE
    -- The reflected polynomial 0xedb88320, four bits at a time.
    step CONSTANT bigint[] := ARRAY[
        0, 498536548, 997073096, 651767980, 1994146192, 1802195444, 1303535960, 1342533948,
        3988292384, 4027552580, 3604390888, 3412177804, 2607071920, 2262029012, 2685067896, 3183342108
    ];
    value bigint := 4294967295;
BEGIN
    FOR byte_index IN 0 .. length(data) - 1 LOOP
        value := value # get_byte(data, byte_index);
        value := (value >> 4) # step[(value & 15) + 1];
        value := (value >> 4) # step[(value & 15) + 1];
    END LOOP;
    RETURN value # 4294967295;
END
$sqlmq$;

-- NULL for a NULL key: the producer chooses any partition.
CREATE FUNCTION {schema}sqlmq_partition_for_key(partitioner text, key bytea, partitions integer) RETURNS integer
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $sqlmq$
BEGIN
    IF partitions < 1 THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'A topic has at least one partition, not ' || partitions || '.';
    END IF;
    CASE partitioner
        WHEN 'murmur2' THEN
            RETURN mod({schema}sqlmq_murmur2(key) & 2147483647, partitions);
        WHEN 'fnv1a' THEN
            RETURN mod({schema}sqlmq_fnv1a(key), partitions);
        WHEN 'crc32' THEN
            RETURN mod({schema}sqlmq_crc32(key), partitions);
        ELSE
            RAISE EXCEPTION USING
                ERRCODE = 'invalid_parameter_value',
                MESSAGE = 'Unknown partitioner ' || quote_literal(partitioner) || '.',
                HINT = 'Choose one of murmur2, fnv1a, crc32.';
    END CASE;
END
$sqlmq$;
