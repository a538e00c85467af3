/* Framed Avro records of a micro-batch, from columns: 0.1 us a record.
 *
 * What a record consists of is told field by field, in its schema's order, by pipeline/record_packed.py. The bytes are those
 * that pyruhvro makes of the same columns; that way costs 1 us a record and more and 1 ms a batch, and is what serves where
 * this was not built. Tests hold the two equal.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef struct { /* strings in Arrow's layout */
    const char *data;
    const int32_t *offsets;
    const uint8_t *valid; /* bitmap, NULL: all of them are */
    int64_t first_bit;
} column;

/* `pieces` are bytes that stand in a record as they are, lengths and all: piece i is from starts[i] to starts[i + 1]. */
typedef struct {
    int32_t kind;
    int32_t count;
    const char *pieces;
    const int32_t *starts;
    const void *values;
    const void *more;
} field;

enum {
    CONSTANT, /* the first piece */
    NAMED,    /* the piece that int32 `values` name, from -1 on */
    CODED,    /* the same with uint8, from 0 on */
    PLACE,    /* a text: the piece, "-", int32 `values`, "-", int64 `more` */
    TEXT,     /* null or a column's text; no column: null */
    LONG,     /* int64 `values`; one for all rows where `count` is 0 */
    STAMP,    /* null or int64: null where uint8 `more` is 0; no `more`: where it is below 0; no `values`: null */
    NUMBER,   /* null or double: null where it is NaN */
    SCORES,   /* a map of `count` names, the pieces, to doubles; an empty one where uint8 `more` is 0 */
    CODES,    /* a map of `count` names, the pieces, to uint8 */
    TEXTS     /* a map of `count` names, the pieces, to the texts of so many columns, without the nulls */
};

static char *put_long(char *to, int64_t value) {
    uint64_t left = ((uint64_t)value << 1) ^ (uint64_t)(value >> 63);
    for (; left > 0x7f; left >>= 7) *to++ = (char)(left | 0x80);
    *to++ = (char)left;
    return to;
}

static char *put_piece(char *to, const field *of, int64_t which) {
    int32_t size = of->starts[which + 1] - of->starts[which];
    memcpy(to, of->pieces + of->starts[which], size);
    return to + size;
}

static int is_there(const column *from, int64_t row) {
    int64_t bit = from->first_bit + row;
    return !from->valid || (from->valid[bit / 8] >> (bit % 8) & 1);
}

static char *put_text(char *to, const column *from, int64_t row) {
    int32_t size = from->offsets[row + 1] - from->offsets[row];
    to = put_long(to, size);
    if (size) memcpy(to, from->data + from->offsets[row], size);
    return to + size;
}

static char *put_double(char *to, double value) {
    memcpy(to, &value, sizeof value);
    return to + sizeof value;
}

static char *decimal(char *to, int64_t value) { /* of what is not negative */
    char digits[20];
    int count = 0;
    do digits[count++] = (char)('0' + value % 10);
    while (value /= 10);
    while (count) *to++ = digits[--count];
    return to;
}

static char *put_place(char *to, const field *of, int64_t row) {
    char id[20 + 1 + 20 + 1], *end = id;
    int32_t size = of->starts[1] - of->starts[0];
    *end++ = '-';
    end = decimal(end, ((const int32_t *)of->values)[row]);
    *end++ = '-';
    end = decimal(end, ((const int64_t *)of->more)[row]);
    to = put_piece(put_long(to, size + (end - id)), of, 0);
    memcpy(to, id, end - id);
    return to + (end - id);
}

static char *put_stamp(char *to, const field *of, int64_t row) {
    const int64_t *values = of->values;
    const uint8_t *there = of->more;
    if (!values || (there ? !there[row] : values[row] < 0)) return put_long(to, 0);
    return put_long(put_long(to, 1), values[row]);
}

static char *put_scores(char *to, const field *of, int64_t row) {
    const uint8_t *there = of->more;
    const double *values = (const double *)of->values + row * of->count;
    if (of->count && (!there || there[row])) {
        to = put_long(to, of->count);
        for (int32_t i = 0; i < of->count; i++) to = put_double(put_piece(to, of, i), values[i]);
    }
    return put_long(to, 0);
}

static char *put_codes(char *to, const field *of, int64_t row) {
    const uint8_t *values = (const uint8_t *)of->values + row * of->count;
    if (of->count) to = put_long(to, of->count);
    for (int32_t i = 0; i < of->count; i++) to = put_long(put_piece(to, of, i), values[i]);
    return put_long(to, 0);
}

static char *put_texts(char *to, const field *of, int64_t row) {
    const column *columns = of->values;
    int64_t count = 0;
    for (int32_t i = 0; i < of->count; i++) count += is_there(columns + i, row);
    if (count) to = put_long(to, count);
    for (int32_t i = 0; i < of->count; i++)
        if (is_there(columns + i, row)) to = put_text(put_piece(to, of, i), columns + i, row);
    return put_long(to, 0);
}

static char *put_field(char *to, const field *of, int64_t row) {
    switch (of->kind) {
    case CONSTANT: return put_piece(to, of, 0);
    case NAMED: return put_piece(to, of, ((const int32_t *)of->values)[row] + 1);
    case CODED: return put_piece(to, of, ((const uint8_t *)of->values)[row]);
    case PLACE: return put_place(to, of, row);
    case TEXT:
        if (!of->values || !is_there(of->values, row)) return put_long(to, 0);
        return put_text(put_long(to, 1), of->values, row);
    case LONG: return put_long(to, ((const int64_t *)of->values)[row * of->count]);
    case STAMP: return put_stamp(to, of, row);
    case NUMBER: {
        double value = ((const double *)of->values)[row];
        return isnan(value) ? put_long(to, 0) : put_double(put_long(to, 1), value);
    }
    case SCORES: return put_scores(to, of, row);
    case CODES: return put_codes(to, of, row);
    default: return put_texts(to, of, row);
    }
}

/* Writes every record into `data`, which must be large enough, and where each begins into `starts` [rows + 1]. */
void write_records(const field *fields, int64_t count, int64_t rows, char *data, int32_t *starts) {
    char *at = data;
    for (int64_t row = 0; row < rows; row++) {
        starts[row] = (int32_t)(at - data);
        for (int64_t i = 0; i < count; i++) at = put_field(at, fields + i, row);
    }
    starts[rows] = (int32_t)(at - data);
}
