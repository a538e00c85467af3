/* Counts of events over the bins of a drift reference: each measure of each event adds one to a bin of the event's group,
 * which is its partition and the pane of its time.
 *
 * drift/measures.py and drift/tallies.py say the same in numpy, for where this was not built: tests hold the two equal.
 * Trusted are pointers, sizes and groups; what the values hold is not.
 */
#include <stdint.h>
#include <string.h>

enum { FLOATS, DOUBLES, FLOAT_CODES, INT_CODES, BYTE_CODES };
enum { MISSING = 1, DEFAULT = 2 };                           /* of `special` */
enum { MISSING_BIN = 0, NAN_BIN = 1, DEFAULT_BIN = 2, FIRST_BIN = 3 };
enum { LANES = 8 };

typedef struct {
    const void *table;      /* edges in the type of the values, infinity behind the last; or the bin of each code */
    int64_t offset;         /* bytes from an event's first value to this one */
    int32_t type, size;     /* size: of the table; of edges a multiple of LANES */
    int32_t first, outside; /* first: the measure's place among all bins. outside: the bin of a code without one */
    int32_t special;        /* row of `specials` */
} measure;

#define PLACE_NUMBER(name, type)                                                   \
    static int32_t name(const measure *of, const char *at) {                       \
        const type *edges = of->table, x = *(const type *)at;                      \
        int32_t below = 0;                                                         \
        if (x != x) return NAN_BIN;                                                \
        for (int32_t i = 0; i < of->size; i += LANES)                              \
            for (int32_t j = 0; j < LANES; j++) below += edges[i + j] < x;         \
        return FIRST_BIN + below;                                                  \
    }
PLACE_NUMBER(place_float, float)
PLACE_NUMBER(place_double, double)

static int32_t place_code(const measure *of, int64_t code) {
    return code < 0 || code >= of->size ? of->outside : ((const int32_t *)of->table)[code];
}

static int32_t place_float_code(const measure *of, const char *at) {
    float code = *(const float *)at;
    return code >= 0 && code < (float)of->size ? place_code(of, (int64_t)code) : of->outside;
}

static int32_t place_int(const measure *of, const char *at) { return place_code(of, *(const int32_t *)at); }

static int32_t place_byte(const measure *of, const char *at) { return place_code(of, *(const uint8_t *)at); }

#define COUNT(place)                                                               \
    for (int64_t row = 0; row < rows; row++) {                                     \
        int32_t told = special ? special[row] : 0;                                 \
        int32_t bin = told ? told == DEFAULT ? DEFAULT_BIN : MISSING_BIN : place(of, at + row * stride); \
        counts[groups[row] * width + of->first + bin]++;                           \
    }

/* data: the values of each event, `stride` bytes apart. groups: of each event. specials: [measures][rows], what is special
 * of a value; NULL: nothing is. counts: [groups][width]. */
void count_bins(const char *data, int64_t stride, int64_t rows, const measure *measures, int64_t measure_count,
                const int32_t *groups, const uint8_t *specials, int64_t width, int32_t *counts) {
    for (const measure *of = measures; of < measures + measure_count; of++) {
        const uint8_t *special = specials && of->special >= 0 ? specials + of->special * rows : 0;
        if (special && !*special && !memcmp(special, special + 1, rows - 1)) special = 0;
        const char *at = data + of->offset;
        switch (of->type) {
            case FLOATS: COUNT(place_float) break;
            case DOUBLES: COUNT(place_double) break;
            case FLOAT_CODES: COUNT(place_float_code) break;
            case INT_CODES: COUNT(place_int) break;
            case BYTE_CODES: COUNT(place_byte) break;
        }
    }
}

static int64_t floor_divide(int64_t value, int64_t by) { return value / by - (value % by < 0); }

/* Groups events by partition and the pane of their time, in the order in which the groups come. table: a power of two of
 * places, at least twice the rows, all -1. of: the group of each event; the rest of each group, as many as there are rows.
 * Returns how many groups there are. */
int64_t group_events(const int32_t *partitions, const int64_t *times, int64_t rows, int64_t pane_ms, int32_t *table,
                     int64_t places, int32_t *of, int32_t *partition, int64_t *pane, int64_t *counts, int64_t *latest) {
    int64_t groups = 0;
    int32_t last = -1;
    for (int64_t row = 0; row < rows; row++) {
        int64_t time = times[row], start = floor_divide(time, pane_ms);
        if (last < 0 || pane[last] != start || partition[last] != partitions[row]) {
            uint64_t mixed = ((uint64_t)start * 31 + (uint32_t)partitions[row]) * 0x9E3779B97F4A7C15ULL;
            int64_t place = (int64_t)(mixed >> 32) & (places - 1);
            while ((last = table[place]) >= 0 && (pane[last] != start || partition[last] != partitions[row]))
                place = (place + 1) & (places - 1);
            if (last < 0) {
                last = table[place] = (int32_t)groups++;
                partition[last] = partitions[row], pane[last] = start, counts[last] = 0, latest[last] = time;
            }
        }
        of[row] = last, counts[last]++;
        if (time > latest[last]) latest[last] = time;
    }
    return groups;
}
