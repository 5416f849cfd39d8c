"""Table H.1 of the paper: the scores of GPT-3 on the tasks that are generated here, in per cent."""

TABLE = """
task                     shots  125M  350M  760M  1.3B  2.7B  6.7B   13B  175B
two_digit_addition       zero   0.70  0.65  0.70  0.85  1.10  2.54  15.4  76.9
two_digit_addition       one    2.00  0.55  3.15  4.00  12.1  19.6  73.0  99.6
two_digit_addition       few    2.00  4.10  3.50  4.50  8.90  11.9  55.5 100.0
two_digit_subtraction    zero   1.25  1.25  1.25  1.25  1.60  7.60  12.6  58.0
two_digit_subtraction    one    1.15  0.95  1.45  1.95  3.85  11.5  44.6  86.4
two_digit_subtraction    few    1.15  1.45  2.25  2.70  7.35  13.6  52.4  98.9
three_digit_addition     zero   0.10  0.10  0.05  0.10  0.10  0.25  1.40  34.2
three_digit_addition     one    0.15  0.00  0.10  0.30  0.45  0.95  15.4  65.5
three_digit_addition     few    0.15  0.45  0.30  0.55  0.75  0.90  8.40  80.4
three_digit_subtraction  zero   0.05  0.05  0.05  0.05  0.05  0.45  1.35  48.3
three_digit_subtraction  one    0.05  0.15  0.25  0.30  0.55  1.60  6.15  78.7
three_digit_subtraction  few    0.05  0.10  0.15  0.35  0.65  1.05  9.20  94.2
four_digit_addition      zero   0.05  0.05  0.00  0.00  0.05  0.05  0.15  4.00
four_digit_addition      one    0.00  0.00  0.10  0.00  0.00  0.10  0.80  14.0
four_digit_addition      few    0.00  0.05  0.05  0.00  0.15  0.15  0.40  25.5
four_digit_subtraction   zero   0.00  0.00  0.00  0.00  0.00  0.00  0.10  7.50
four_digit_subtraction   one    0.00  0.00  0.00  0.00  0.05  0.00  0.50  14.0
four_digit_subtraction   few    0.00  0.05  0.00  0.00  0.10  0.05  0.40  26.8
five_digit_addition      zero   0.00  0.00  0.00  0.00  0.00  0.00  0.00  0.65
five_digit_addition      one    0.00  0.00  0.00  0.00  0.00  0.00  0.05  3.45
five_digit_addition      few    0.00  0.00  0.00  0.00  0.00  0.00  0.05  9.30
five_digit_subtraction   zero   0.00  0.00  0.00  0.00  0.00  0.00  0.00  0.80
five_digit_subtraction   one    0.00  0.00  0.00  0.00  0.00  0.00  0.05  3.75
five_digit_subtraction   few    0.00  0.00  0.00  0.00  0.00  0.00  0.00  9.90
two_digit_multiplication zero   2.20  2.25  2.65  2.10  2.55  5.80  6.15  19.8
two_digit_multiplication one    1.35  2.35  3.35  2.35  4.75  9.15  11.0  27.4
two_digit_multiplication few    1.35  2.90  2.70  2.85  4.25  6.10  7.05  29.2
single_digit_three_ops   zero   1.25  2.95  2.75  0.05  0.30  2.35  0.75  9.75
single_digit_three_ops   one    1.90  2.80  2.85  3.65  6.45  9.15  8.20  14.3
single_digit_three_ops   few    1.70  2.15  3.90  5.75  6.20  7.60  9.95  21.3
cycle_letters_in_word    zero   0.62  0.71  2.85  0.00  0.63  1.35  2.58  3.66
cycle_letters_in_word    one    1.67  4.36  5.68  6.46  6.25  9.41  15.1  21.7
cycle_letters_in_word    few    4.63  9.27  10.7  14.5  16.7  21.9  27.7  37.9
mid_word_1_anagrams      zero   0.10  0.14  0.40  0.00  0.27  0.69  1.16  2.28
mid_word_1_anagrams      one    0.21  0.61  1.12  1.27  1.60  2.72  3.72  8.62
mid_word_1_anagrams      few    0.50  1.27  2.13  3.05  3.81  5.49  8.38  15.1
mid_word_2_anagrams      zero   0.81  1.21  2.69  0.01  1.71  3.75  4.53  8.91
mid_word_2_anagrams      one    1.19  2.62  4.70  4.77  6.97  10.2  14.6  25.9
mid_word_2_anagrams      few    1.94  4.80  7.59  9.87  12.6  18.9  25.6  39.7
random_insertion_in_word zero   0.00  0.00  0.10  0.00  0.05  0.42  0.89  8.26
random_insertion_in_word one    0.03  0.05  0.57  1.18  1.67  3.46  6.62  45.4
random_insertion_in_word few    0.11  0.28  2.19  4.18  6.61  11.0  27.3  67.2
reversed_words           zero   0.00  0.01  0.01  0.01  0.02  0.03  0.03  0.09
reversed_words           one    0.02  0.01  0.01  0.00  0.05  0.07  0.11  0.48
reversed_words           few    0.00  0.05  0.00  0.17  0.24  0.30  0.42  0.44
"""

PAPER: dict[str, tuple[tuple[float, ...], ...]] = {}
"""For each task: zero-, one- and few-shot, each of the eight sizes."""
for _name, _, *_scores in map(str.split, TABLE.strip().splitlines()[1:]):
    PAPER[_name] = (*PAPER.get(_name, ()), tuple(map(float, _scores)))
