/* Features of a micro-batch: fields of numbers, words of a vocabulary, the keys of views' rows, what a row means.
 *
 * The same values, bit by bit, as features/rows.py and features/columns.py compute with numpy and Arrow; that way is what
 * serves where this was not built, and costs a hundred small calls a batch. A test holds the two equal. Trusted are
 * Arrow's offsets and what was made here; the size of a stored row is checked, and so is the index of each one.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

/* A batch of columns as Arrow's C data interface hands it over, to be read and not released here. */
typedef struct arrow_schema {
    const char *format, *name, *metadata;
    int64_t flags, child_count;
    struct arrow_schema **children, *dictionary;
    void *release, *private_data;
} arrow_schema;

typedef struct arrow_array {
    int64_t length, null_count, offset, buffer_count, child_count;
    const void **buffers;
    struct arrow_array **children, *dictionary;
    void *release, *private_data;
} arrow_array;

typedef struct {
    const arrow_schema *schema;
    const arrow_array *array;
} batch;

typedef struct { /* strings or bytes in Arrow's layout */
    const char *data;
    const int32_t *offsets;
    const uint8_t *valid; /* bitmap, NULL: all of them are */
    int64_t first_bit;
} column;

typedef struct { /* texts to be found by hash */
    const char *data;
    const int32_t *offsets;
    int64_t skip; /* bytes that all of them begin with */
    int32_t *slots; /* -1: free, and at least half of them are */
    int64_t slot_count; /* a power of two */
    uint64_t secret;
} table;

enum { PRESENT, STALE, FUTURE, MISSING, DEFAULTED = 5 }; /* FeatureStatus */
enum { DAY = 86400000, NO_OFFSET = INT32_MIN };
#define PARTS_DONE INT64_MAX
#define PARTS_UNFIT INT64_MIN
enum { PRIME = 0x7fffffff };
enum { NO_WORD, UNSEEN_WORD, FIRST_WORD };

static int bit_of(const uint8_t *bits, int64_t at) { return bits[at / 8] >> (at % 8) & 1; }

static int is_there(const column *of, int64_t row) { return !of->valid || bit_of(of->valid, of->first_bit + row); }

/* The place of a column among a batch's; -1: it has none, or none that is plain. */
static int64_t find(const batch *in, const char *path) {
    for (int64_t i = 0; !in->array->offset && i < in->schema->child_count; i++)
        if (!strcmp(in->schema->children[i]->name, path)) return in->schema->children[i]->dictionary ? -1 : i;
    return -1;
}

/* A column of strings; 0: it is none. */
static int text_column(const batch *in, const char *path, column *found) {
    int64_t place = find(in, path);
    if (place < 0 || strcmp(in->schema->children[place]->format, "u")) return 0;
    const arrow_array *array = in->array->children[place];
    *found = (column){array->buffers[2], (const int32_t *)array->buffers[1] + array->offset, array->buffers[0],
                      array->offset};
    return 1;
}

/* A polynomial at a secret point below 2**30, modulo a prime and never above 2**32: who writes events can't choose texts
 * that meet in one slot.
 */
static uint64_t hash(const char *text, int64_t size, uint64_t secret) {
    uint64_t value = 0;
    for (int64_t i = 0; i < size; i++) {
        value = value * secret + (uint8_t)text[i] + 1;
        value = (value & PRIME) + (value >> 31);
    }
    return value;
}

/* The slot of a text, or the free one where it belongs. */
static int32_t *slot_of(const table *in, const char *text, int64_t size) {
    int64_t rest = size - in->skip, last = in->slot_count - 1;
    for (int64_t at = hash(text + in->skip, rest, in->secret) & last;; at = (at + 1) & last) {
        int32_t place = in->slots[at];
        if (place < 0) return in->slots + at;
        const char *kept = in->data + in->offsets[place];
        if (in->offsets[place + 1] - in->offsets[place] != size) continue;
        if (!rest || !memcmp(kept + in->skip, text + in->skip, rest)) return in->slots + at;
    }
}

static char *put_escaped(char *to, const column *from, int64_t row) {
    for (int32_t i = from->offsets[row]; i < from->offsets[row + 1]; i++) {
        char byte = from->data[i];
        if (byte == '\\' || byte == '\x1f') *to++ = '\\';
        *to++ = byte;
    }
    return to;
}

/* An event's key; NULL: a part of it is null. */
static char *put_key(char *to, const column *parts, int64_t part_count, int64_t row) {
    for (int64_t i = 0; i < part_count; i++) {
        if (!is_there(parts + i, row)) return NULL;
        if (i) *to++ = '\x1f';
        to = put_escaped(to, parts + i, row);
    }
    return to;
}

typedef struct { /* how the keys of a view's rows are made */
    const char *prefix;
    int64_t prefix_size;
    const char *const *paths; /* of the columns that are their parts */
    int64_t part_count;
} key;

/* How many bytes the keys of all events may take; -1: one of their parts is no column of strings. */
int64_t key_bytes(const batch *in, const key *views, int64_t view_count) {
    int64_t events = in->array->length, size = 0;
    column part;
    for (const key *of = views; of < views + view_count; of++) {
        size += events * (of->prefix_size + of->part_count - 1);
        for (int64_t i = 0; i < of->part_count; i++) {
            if (!text_column(in, of->paths[i], &part)) return -1;
            if (events) size += 2 * (int64_t)(part.offsets[events] - part.offsets[0]); /* each byte may be escaped */
        }
    }
    return size;
}

/* The distinct keys of the views' rows, view by view: in `data`, which has room for the keys of all events, as `offsets`
 * say. counts: how many each view has. index [views, events]: which of its view's keys an event means; -1: a part of its
 * key is null. An event's key is written behind those that are kept, and stays if it is new.
 */
void distinct_keys(const batch *in, const key *views, int64_t view_count, column *parts, uint64_t secret, int32_t *slots,
                   int64_t slot_count, char *data, int32_t *offsets, int32_t *index, int32_t *counts) {
    int64_t events = in->array->length;
    offsets[0] = 0;
    for (int64_t i = 0; i < view_count; i++) {
        const key *of = views + i;
        table kept = {data, offsets, of->prefix_size, slots, slot_count, secret};
        int32_t count = 0;
        for (int64_t part = 0; part < of->part_count; part++) text_column(in, of->paths[part], parts + part);
        memset(slots, -1, slot_count * sizeof *slots);
        for (int64_t row = 0; row < events; row++) {
            char *start = data + offsets[count];
            char *end = put_key(start + of->prefix_size, parts, of->part_count, row);
            *index++ = -1;
            if (!end) continue;
            int32_t *slot = slot_of(&kept, start, end - start);
            if (*slot < 0) {
                memcpy(start, of->prefix, of->prefix_size);
                *slot = count++;
                offsets[count] = (int32_t)(end - data);
            }
            index[-1] = *slot;
        }
        counts[i] = count;
        offsets += count;
    }
}

/* Makes the words of a vocabulary ready to be found: fills `slots`. Of two that are the same, the last is. */
void place_words(const column *words, int64_t count, uint64_t secret, int32_t *slots, int64_t slot_count) {
    table known = {words->data, words->offsets, 0, slots, slot_count, secret};
    memset(slots, -1, slot_count * sizeof *slots);
    for (int64_t i = 0; i < count; i++) {
        int32_t start = words->offsets[i];
        *slot_of(&known, words->data + start, words->offsets[i + 1] - start) = (int32_t)i;
    }
}

/* The code of each event's text under a vocabulary; 0: there is no such column of strings. */
int code_texts(const batch *in, const char *path, const column *words, uint64_t secret, int32_t *slots,
               int64_t slot_count, int32_t *codes) {
    table known = {words->data, words->offsets, 0, slots, slot_count, secret};
    column texts;
    if (!text_column(in, path, &texts)) return 0;
    for (int64_t row = 0; row < in->array->length; row++) {
        int32_t start = texts.offsets[row], place = -1;
        codes[row] = NO_WORD;
        if (!is_there(&texts, row)) continue;
        place = *slot_of(&known, texts.data + start, texts.offsets[row + 1] - start);
        codes[row] = place < 0 ? UNSEEN_WORD : place + FIRST_WORD;
    }
    return 1;
}

typedef struct {
    int64_t fields;
    const float *defaults;
    int64_t max_age; /* milliseconds; below 0: any */
    uint8_t use_stale, use_future;
} view;

/* What is stored for an event, and whether its row may be used. `values`: where a row's own begin, unaligned. */
static uint8_t judge(const view *of, const column *rows, int64_t row_count, int32_t row, int64_t event_time,
                     const char **values) {
    int64_t time;
    *values = NULL;
    if (row < 0 || row >= row_count || !is_there(rows, row)) return MISSING;
    if (rows->offsets[row + 1] - rows->offsets[row] != (int64_t)sizeof time + 4 * of->fields) return DEFAULTED;
    const char *stored = rows->data + rows->offsets[row];
    memcpy(&time, stored, sizeof time);
    int future = time > event_time;
    /* Unsigned, because the two times may be more than 2**63 apart */
    int stale = of->max_age >= 0 && (uint64_t)event_time - (uint64_t)time > (uint64_t)of->max_age;
    if (future ? of->use_future : stale ? of->use_stale : 1) *values = stored + sizeof time;
    return future ? FUTURE : stale ? STALE : PRESENT;
}

/* Values [events, fields] and status of each event. index: which row each means. */
void spread_rows(const view *of, const column *rows, int64_t row_count, const int32_t *index, const int64_t *event_times,
                 int64_t events, float *values, uint8_t *status) {
    for (int64_t event = 0; event < events; event++, values += of->fields) {
        const char *stored;
        status[event] = judge(of, rows, row_count, index[event], event_times[event], &stored);
        memcpy(values, stored ? stored : (const char *)of->defaults, of->fields * sizeof *values);
        for (int64_t i = 0; stored && i < of->fields; i++)
            if (values[i] != values[i]) values[i] = of->defaults[i];
    }
}

#define PUT(type) \
    for (int64_t i = 0; i < from->length; i++) to[i * width] = (float)((const type *)values)[first + i]; \
    return 1

/* Numbers, booleans and times (whole numbers in their own unit) as float32; 0: of another type. */
static int put_values(const arrow_array *from, const char *format, float *to, int64_t width) {
    const void *values = from->buffers[1];
    int64_t first = from->offset;
    if (!strcmp(format, "tdD") || !strcmp(format, "tts") || !strcmp(format, "ttm")) format = "i";
    if (!strncmp(format, "ts", 2) || !strncmp(format, "tD", 2) || !strncmp(format, "td", 2)) format = "l";
    if (!strncmp(format, "tt", 2)) format = "l";
    if (format[0] && format[1]) return 0;
    switch (format[0]) {
    case 'c': PUT(int8_t);
    case 's': PUT(int16_t);
    case 'i': PUT(int32_t);
    case 'l': PUT(int64_t);
    case 'C': PUT(uint8_t);
    case 'S': PUT(uint16_t);
    case 'I': PUT(uint32_t);
    case 'L': PUT(uint64_t);
    case 'f': PUT(float);
    case 'g': PUT(double);
    case 'b':
        for (int64_t i = 0; i < from->length; i++) to[i * width] = (float)bit_of(values, first + i);
        return 1;
    }
    return 0;
}

/* Fields of numbers side by side: `to` [events, width]. missing: what a null of each becomes. 0: one is no such field. */
int put_numbers(const batch *in, const char *const *paths, const double *missing, int64_t width, float *to) {
    for (int64_t field = 0; field < width; field++) {
        int64_t place = find(in, paths[field]);
        if (place < 0) return 0;
        const arrow_array *from = in->array->children[place];
        if (!put_values(from, in->schema->children[place]->format, to + field, width)) return 0;
        const uint8_t *valid = from->buffers[0];
        for (int64_t i = 0; valid && i < from->length; i++)
            if (!bit_of(valid, from->offset + i)) to[i * width + field] = (float)missing[field];
    }
    return 1;
}

static int64_t floor_div(int64_t value, int64_t by) { return value / by - (value % by < 0); }

static double part_of(int64_t wall, char part) { /* milliseconds since 1970, a Thursday; Monday is 0 */
    int64_t of = part == 'm' ? 60 : part == 'h' ? 24 : 7;
    int64_t whole = floor_div(wall, part == 'm' ? 60000 : part == 'h' ? 3600000 : DAY) + (part == 'w' ? 3 : 0);
    return (double)(whole - of * floor_div(whole, of));
}

/* Minutes (m), hours (h) and weekdays (w) of a timestamp's wall clock side by side: `to` [events, part_count], NaN for null.
 * days: what is to be added to UTC on each day from 1970 on, milliseconds, NO_OFFSET where that is not known or changes;
 * NULL: nothing. Returns PARTS_DONE, PARTS_UNFIT (another type of column), or the number of a day that is not in `days`.
 */
int64_t put_parts(const batch *in, const char *path, const int32_t *days, int64_t day_count, const char *parts,
                  int64_t part_count, double *to) {
    int64_t place = find(in, path);
    if (place < 0 || strncmp(in->schema->children[place]->format, "ts", 2)) return PARTS_UNFIT;
    char unit = in->schema->children[place]->format[2];
    const arrow_array *from = in->array->children[place];
    const uint8_t *valid = from->buffers[0];
    if (unit == 's') return PARTS_UNFIT;
    for (int64_t row = 0; row < from->length; row++, to += part_count) {
        int there = !valid || bit_of(valid, from->offset + row);
        int64_t wall = 0;
        if (there) {
            wall = ((const int64_t *)from->buffers[1])[from->offset + row];
            if (unit != 'm') wall = floor_div(wall, unit == 'u' ? 1000 : 1000000);
            int64_t day = floor_div(wall, DAY);
            if (days && (day < 0 || day >= day_count || days[day] == NO_OFFSET)) return day;
            if (days) wall += days[day];
        }
        for (int64_t i = 0; i < part_count; i++) to[i] = there ? part_of(wall, parts[i]) : NAN;
    }
    return PARTS_DONE;
}
