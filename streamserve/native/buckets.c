/* Buckets of record keys: xxh64(salt + key), seed 0, modulo 10,000.
 *
 * XXH64 as Yann Collet's "xxHash fast digest algorithm" 0.2.0 describes it (xxHash, doc/xxhash_spec.md), step by step; its
 * sum is the same on every machine. rollouts/xxh64.py is the same in numpy, for where this was not built: a test holds the
 * two equal. Trusted are Arrow's offsets and the rows that are asked for.
 */
#include <stdint.h>
#include <string.h>

typedef struct { /* bytes in Arrow's layout */
    const uint8_t *data;
    const int32_t *offsets;
    const uint8_t *valid; /* bitmap, NULL: all of them are */
    int64_t first_bit;
} column;

typedef struct { /* of a text that comes in pieces */
    uint64_t lanes[4];
    uint8_t rest[32]; /* what is not a whole stripe yet */
    uint64_t size;
} sum;

enum { BUCKETS = 10000, NO_BUCKET = INT32_MAX, STRIPE = 32 };
#define PRIME1 0x9E3779B185EBCA87ULL
#define PRIME2 0xC2B2AE3D27D4EB4FULL
#define PRIME3 0x165667B19E3779F9ULL
#define PRIME4 0x85EBCA77C2B2AE63ULL
#define PRIME5 0x27D4EB2F165667C5ULL

static uint64_t rotate(uint64_t value, int by) { return value << by | value >> (64 - by); }

static uint64_t half(const uint8_t *at) { /* little-endian on every machine; one load where that is the machine's */
    return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static uint64_t word(const uint8_t *at) { return half(at) | half(at + 4) << 32; }

static uint64_t mix(uint64_t lane, uint64_t input) { return rotate(lane + input * PRIME2, 31) * PRIME1; }

static void put_stripe(uint64_t *lanes, const uint8_t *at) {
    for (int i = 0; i < 4; i++) lanes[i] = mix(lanes[i], word(at + 8 * i));
}

static void put(sum *to, const uint8_t *data, uint64_t size) {
    uint64_t kept = to->size % STRIPE, room = STRIPE - kept;
    to->size += size;
    if (size >= room) {
        if (kept) {
            memcpy(to->rest + kept, data, room);
            put_stripe(to->lanes, to->rest);
            data += room, size -= room, kept = 0;
        }
        for (; size >= STRIPE; data += STRIPE, size -= STRIPE) put_stripe(to->lanes, data);
    }
    if (size) memcpy(to->rest + kept, data, size);
}

static uint64_t converge(const uint64_t *lanes) {
    uint64_t value = rotate(lanes[0], 1) + rotate(lanes[1], 7) + rotate(lanes[2], 12) + rotate(lanes[3], 18);
    for (int i = 0; i < 4; i++) value = (value ^ mix(0, lanes[i])) * PRIME1 + PRIME4;
    return value;
}

static uint64_t finish(const sum *of) {
    uint64_t value = (of->size >= STRIPE ? converge(of->lanes) : PRIME5) + of->size;
    const uint8_t *at = of->rest, *end = at + of->size % STRIPE;
    for (; end - at >= 8; at += 8) value = rotate(value ^ mix(0, word(at)), 27) * PRIME1 + PRIME4;
    for (; end - at >= 4; at += 4) value = rotate(value ^ half(at) * PRIME1, 23) * PRIME2 + PRIME3;
    for (; at < end; at++) value = rotate(value ^ *at * PRIME5, 11) * PRIME1;
    value = (value ^ value >> 33) * PRIME2;
    value = (value ^ value >> 29) * PRIME3;
    return value ^ value >> 32;
}

static int is_there(const column *of, int64_t row) {
    int64_t bit = of->first_bit + row;
    return !of->valid || of->valid[bit / 8] >> (bit % 8) & 1;
}

/* The bucket of each of `count` keys, NO_BUCKET for null. rows: which ones; NULL: the first ones. */
void bucket_keys(const column *keys, const int64_t *rows, int64_t count, const uint8_t *salt, int64_t salt_size,
                 int32_t *buckets) {
    sum salted = {{PRIME1 + PRIME2, PRIME2, 0, 0 - PRIME1}, {0}, 0};
    put(&salted, salt, salt_size);
    for (int64_t i = 0; i < count; i++) {
        int64_t row = rows ? rows[i] : i;
        sum one = salted;
        buckets[i] = NO_BUCKET;
        if (!is_there(keys, row)) continue;
        put(&one, keys->data + keys->offsets[row], keys->offsets[row + 1] - keys->offsets[row]);
        buckets[i] = (int32_t)(finish(&one) % BUCKETS);
    }
}
