#include "peft/plot.h"

#include <math.h>

enum { WIDTH = 860, HEIGHT = 480, LEFT = 70, RIGHT = 24, TOP = 56, BOTTOM = 56 };

typedef struct axis {
    double low, high, step; /* ticks at every multiple of step from low to high */
    double from, to;        /* pixels of low and high */
} axis;

/* 1, 2 or 5 times a power of ten, so that the range has about n of it. */
static double nice_step(double range, int n) {
    double raw = range / n, power = pow(10, floor(log10(raw))), m = raw / power;
    return power * (m < 1.5 ? 1 : m < 3.5 ? 2 : m < 7.5 ? 5 : 10);
}

static axis axis_make(double low, double high, int n, double from, double to) {
    if (!(low <= high)) low = 0, high = 1; /* nothing to show */
    if (high - low < 1e-9 * GR_MAX(fabs(high), 1e-9)) {
        low -= 0.5;
        high += 0.5;
    }
    double step = nice_step(high - low, n);
    axis a = {floor(low / step + 1e-9) * step, ceil(high / step - 1e-9) * step, step, from, to};
    return a;
}

static double place(const axis *a, double v) { return a->from + (v - a->low) / (a->high - a->low) * (a->to - a->from); }

static bool shown(gr_point p) { return isfinite(p.x) && isfinite(p.y); }

static void put_escaped(gr_str *s, const char *text) {
    for (; *text; text++) {
        if (*text == '<') gr_str_puts(s, "&lt;");
        else if (*text == '&') gr_str_puts(s, "&amp;");
        else if ((unsigned char)*text >= ' ') gr_str_putc(s, *text);
    }
}

static void put_axes(gr_str *s, const axis *x, const axis *y) {
    int x_ticks = (int)floor((x->high - x->low) / x->step + 1e-9), y_ticks = (int)lround((y->high - y->low) / y->step);
    gr_str_puts(s, "<g stroke='#e4e4e4'>\n");
    for (int i = 0; i <= y_ticks; i++) {
        double at = place(y, y->low + i * y->step);
        gr_str_printf(s, "<line x1='%d' y1='%.1f' x2='%d' y2='%.1f'/>\n", LEFT, at, WIDTH - RIGHT, at);
    }
    gr_str_puts(s, "</g>\n<g fill='#555' text-anchor='end'>\n");
    for (int i = 0; i <= y_ticks; i++) {
        double v = y->low + i * y->step;
        if (fabs(v) < 1e-9 * y->step) v = 0; /* no "-0" */
        gr_str_printf(s, "<text x='%d' y='%.1f'>%.6g</text>\n", LEFT - 8, place(y, v) + 4, v);
    }
    gr_str_puts(s, "</g>\n<g fill='#555' text-anchor='middle'>\n");
    for (int i = 0; i <= x_ticks; i++) {
        double v = x->low + i * x->step, at = place(x, v);
        gr_str_printf(s, "<text x='%.1f' y='%d'>%.7g</text>\n", at, HEIGHT - BOTTOM + 20, v);
        gr_str_printf(s, "<line x1='%.1f' y1='%d' x2='%.1f' y2='%d' stroke='#555'/>\n", at, HEIGHT - BOTTOM, at,
                      HEIGHT - BOTTOM + 5);
    }
    gr_str_printf(s, "<text x='%d' y='%d'>step</text>\n", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12);
    int middle = (TOP + HEIGHT - BOTTOM) / 2;
    gr_str_printf(s, "<text x='18' y='%d' transform='rotate(-90 18 %d)'>loss</text>\n</g>\n", middle, middle);
    gr_str_printf(s, "<path d='M%d %dV%dH%d' fill='none' stroke='#555'/>\n", LEFT, TOP, HEIGHT - BOTTOM, WIDTH - RIGHT);
}

static void put_line(gr_str *s, const axis *x, const axis *y, const gr_point *p, int64_t n, const char *style) {
    bool drawing = false;
    gr_str_puts(s, "<path d='");
    for (int64_t i = 0; i < n; i++) {
        if (shown(p[i])) gr_str_printf(s, "%c%.1f %.1f", drawing ? 'L' : 'M', place(x, p[i].x), place(y, p[i].y));
        drawing = shown(p[i]);
    }
    gr_str_printf(s, "' fill='none' stroke-linejoin='round' %s/>\n", style);
}

/* Exponential moving average over about a twentieth of the run, without the bias of its start. */
static void put_smoothed(gr_str *s, const axis *x, const axis *y, const gr_point *p, int64_t n, const char *style) {
    double keep = 1 - 1 / GR_MAX(2.0, (double)n / 20), sum = 0, weight = 0;
    char command = 'M';
    gr_str_puts(s, "<path d='");
    for (int64_t i = 0; i < n; i++) {
        if (!shown(p[i])) continue;
        sum = keep * sum + p[i].y;
        weight = keep * weight + 1;
        gr_str_printf(s, "%c%.1f %.1f", command, place(x, p[i].x), place(y, sum / weight));
        command = 'L';
    }
    gr_str_printf(s, "' fill='none' stroke-linejoin='round' %s/>\n", style);
}

static void put_legend(gr_str *s, bool has_eval) {
    static const char *const names[] = {"train", "train, smoothed", "eval"};
    static const char *const colours[] = {"#a9c7e8", "#1f5fa8", "#d1495b"};
    int x = WIDTH - RIGHT - (has_eval ? 270 : 200);
    for (int i = 0; i < (has_eval ? 3 : 2); i++) {
        gr_str_printf(s, "<rect x='%d' y='38' width='18' height='4' fill='%s'/><text x='%d' y='44'>%s</text>\n", x, colours[i],
                      x + 24, names[i]);
        x += i == 0 ? 70 : 140;
    }
}

void gr_plot_loss(gr_str *svg, const char *title, const gr_point *train, int64_t n_train, const gr_point *eval, int64_t n_eval) {
    double x_high = 1, low = INFINITY, high = -INFINITY;
    for (int64_t i = 0; i < n_train + n_eval; i++) {
        gr_point p = i < n_train ? train[i] : eval[i - n_train];
        if (!shown(p)) continue;
        x_high = GR_MAX(x_high, p.x);
        low = GR_MIN(low, p.y);
        high = GR_MAX(high, p.y);
    }
    axis x = axis_make(0, x_high, 10, LEFT, WIDTH - RIGHT), y = axis_make(low, high, 6, HEIGHT - BOTTOM, TOP);
    x.high = x_high; /* the last step is the right edge */
    gr_str_printf(svg, "<svg xmlns='http://www.w3.org/2000/svg' width='%d' height='%d' viewBox='0 0 %d %d' ", WIDTH, HEIGHT, WIDTH,
                  HEIGHT);
    gr_str_puts(svg, "font-family='sans-serif' font-size='13' fill='#222'>\n<rect width='100%' height='100%' fill='#fff'/>\n");
    gr_str_printf(svg, "<text x='%d' y='28' font-size='17' font-weight='bold'>", LEFT);
    put_escaped(svg, title);
    gr_str_puts(svg, "</text>\n");
    put_axes(svg, &x, &y);
    put_line(svg, &x, &y, train, n_train, "stroke='#a9c7e8' stroke-width='1'");
    put_smoothed(svg, &x, &y, train, n_train, "stroke='#1f5fa8' stroke-width='2.2'");
    put_line(svg, &x, &y, eval, n_eval, "stroke='#d1495b' stroke-width='1.4' stroke-dasharray='5 3'");
    for (int64_t i = 0; i < n_eval; i++)
        if (shown(eval[i]))
            gr_str_printf(svg, "<circle cx='%.1f' cy='%.1f' r='4' fill='#d1495b'><title>step %.0f: %.4f</title></circle>\n",
                          place(&x, eval[i].x), place(&y, eval[i].y), eval[i].x, eval[i].y);
    put_legend(svg, n_eval > 0);
    gr_str_puts(svg, "</svg>\n");
}
